"""The sections of the page, one a file, and their order.

A package adds its own with an entry point, and so does a task that has something to show:

    [project.entry-points."subquad.sections"]
    mine = "my_package:SECTION"

where SECTION is a `subquad.report.Section`. They stand behind what was measured and before what it rests on.
"""

import re
import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points

from subquad.report.findings import Findings
from subquad.report.markup import Markup
from subquad.report.section import Section
from subquad.report.sections.configuration import CONFIGURATION
from subquad.report.sections.cost import COST
from subquad.report.sections.failures import FAILURES
from subquad.report.sections.fairness import FAIRNESS
from subquad.report.sections.leaderboard import LEADERBOARD
from subquad.report.sections.learning import LEARNING
from subquad.report.sections.literature import LITERATURE
from subquad.report.sections.parts import PARTS
from subquad.report.sections.quality import QUALITY

MEASURED = (LEADERBOARD, QUALITY, PARTS, LEARNING, COST)
EVIDENCE = (FAIRNESS, FAILURES, CONFIGURATION, LITERATURE)
RESERVED = {"answer", "filter"}  # ids of the page's own


def contents(findings: Findings) -> list[tuple[Section, Markup]]:
    """Each section that has something to say, and what that is, in the order of the page."""
    ours = {section.id for section in (*MEASURED, *EVIDENCE)}
    shown = [(section, section.of(findings)) for section in MEASURED]
    shown += _registered(findings, taken=ours | RESERVED)
    shown += [(section, section.of(findings)) for section in EVIDENCE]
    return [(section, content) for section, content in shown if content]


def _registered(findings: Findings, *, taken: set[str]) -> Iterator[tuple[Section, Markup | None]]:
    """Those of other packages, and what they say. One that fails warns, and the page is without it."""
    for entry in sorted(entry_points(group="subquad.sections"), key=lambda entry: entry.name):
        try:
            section = entry.load()
            if not isinstance(section, Section):
                raise TypeError(f"{section!r} is not a subquad.report.Section")
            if section.id in taken or not re.fullmatch(r"[a-z][a-z0-9-]*", section.id):
                raise ValueError(
                    f"its id {section.id!r} is taken or not of lower case letters, digits and hyphens"
                )
            content = section.of(findings) if section.task in (None, findings.question.task) else None
        except Exception as error:
            warnings.warn(f"section {entry.name!r} from {entry.value!r} left out: {error}", stacklevel=2)
            continue
        taken.add(section.id)
        yield section, content
