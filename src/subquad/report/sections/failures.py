"""Every run that ended without a result, and why."""

from subquad.report import formats
from subquad.report.findings import ComparisonFindings
from subquad.report.markup import Markup, element, join
from subquad.report.section import SharedSection
from subquad.report.table import Table

NOTE = "A run that exhausts memory, time or numbers is a result. The others went on without it."


def failures_content(findings: ComparisonFindings) -> Markup | None:
    if not findings.failures:
        return None
    table = Table(
        caption="Runs without a result",
        columns=("run", "status", "reason", "after"),
        rows=tuple(
            (run.label, run.status, run.reason, formats.duration(run.seconds)) for run in findings.failures
        ),
    )
    return join((element("p", NOTE), table.html()))


FAILURES = SharedSection(id="failures", title="Failures", of=failures_content)
