"""The report of a comparison: its findings as typed data, and the HTML page to decide from."""

from pathlib import Path

from subquad.report.findings import ComparisonFindings, Findings, comparison_findings, findings_in
from subquad.report.markup import Markup, element, join
from subquad.report.section import Section, SharedSection
from subquad.report.table import Table

__all__ = [
    "ComparisonFindings",
    "Findings",
    "Markup",
    "Section",
    "SharedSection",
    "Table",
    "comparison_findings",
    "element",
    "findings_in",
    "join",
    "write",
]


def write(folder: Path, comparison: str | None = None) -> Path:
    """Write the page of a comparison in a folder, by default of the latest; its path.

    comparison: its key, as DIR/reports/KEY.html is named; None: the latest.

    Raises `ValueError`, naming the file, where there is no comparison or a file is damaged.
    """
    from subquad.report.page import write_page

    return write_page(findings_in(folder, comparison), folder)
