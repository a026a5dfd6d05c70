"""The sections of the page, one a file, and their order.

A package adds its own with an entry point, and so does a task that has something to show:

    [project.entry-points."subquad.sections"]
    mine = "my_package:SECTION"

where SECTION is a `subquad.report.Section`. They stand behind what was measured and before what it rests on;
of several tasks, each has its own sections together, under its name.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import chain, count

from subquad.report.findings import ComparisonFindings, Findings
from subquad.report.markup import Markup, element, join, nested
from subquad.report.section import Section, SharedSection
from subquad.report.sections.configuration import CONFIGURATION
from subquad.report.sections.cost import COST
from subquad.report.sections.failures import FAILURES
from subquad.report.sections.fairness import FAIRNESS
from subquad.report.sections.leaderboard import LEADERBOARD
from subquad.report.sections.learning import LEARNING
from subquad.report.sections.literature import LITERATURE
from subquad.report.sections.quality import QUALITY

MEASURED = (LEADERBOARD, QUALITY, LEARNING)  # on each task
SHARED = (COST,)
EVIDENCE = (FAIRNESS, FAILURES, CONFIGURATION, LITERATURE)
RESERVED = {"answer", "filter"}  # ids of the page's own


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A section of a page with what it says."""

    id: str
    title: str
    content: Markup


@dataclass(frozen=True, kw_only=True)
class TaskSections:
    """The sections of one task of several."""

    id: str
    findings: Findings
    sections: Sequence[Shown]


def contents(findings: ComparisonFindings) -> list[Shown | TaskSections]:
    """Each section that has something to say, in the order of the page."""
    ours = {section.id for section in (*MEASURED, *SHARED, *EVIDENCE)}
    added = list(_registered(taken=ours | RESERVED))
    shared = _shared(SHARED, findings)
    evidence = _shared(EVIDENCE, findings)
    if len(findings.tasks) == 1:
        (task,) = findings.tasks
        return [*_of_task(MEASURED, task), *shared, *_of_task(added, task), *evidence]
    taken = {shown.id for shown in (*shared, *evidence)} | RESERVED
    tasks: list[Shown | TaskSections] = []
    for task in findings.tasks:
        prefix = _identifier(task.question.task, taken=taken)
        sections = [
            Shown(id=f"{prefix}-{each.id}", title=each.title, content=nested(each.content, prefix))
            for each in _of_task((*MEASURED, *added), task)
        ]
        taken |= {prefix, *(each.id for each in sections)}
        tasks.append(TaskSections(id=prefix, findings=task, sections=sections))
    return [*tasks, *shared, *evidence]


def _of_task(sections: Sequence[Section], task: Findings) -> Iterator[Shown]:
    """What the sections say of a task. One of another package that fails warns and is left out."""
    for section in sections:
        if section.task not in (None, task.question.task):
            continue
        try:
            content = section.of(task)
        except Exception as error:
            if section in MEASURED:
                raise
            warnings.warn(f"section {section.id!r} left out: {error}", stacklevel=2)
            continue
        if content:
            yield Shown(id=section.id, title=section.title, content=content)


def _shared(sections: Sequence[Section | SharedSection], findings: ComparisonFindings) -> list[Shown]:
    """What the sections say of all tasks: a section about one says it of each, under its name."""
    shown = []
    for section in sections:
        content = section.of(findings) if isinstance(section, SharedSection) else _each(section.of, findings)
        if content:
            shown.append(Shown(id=section.id, title=section.title, content=content))
    return shown


def _each(of: Callable[[Findings], Markup | None], findings: ComparisonFindings) -> Markup | None:
    said = [(task.question.label, content) for task in findings.tasks if (content := of(task))]
    if len(findings.tasks) == 1 or not said:
        return said[0][1] if said else None
    return join(
        part
        for place, (label, content) in enumerate(said)
        for part in (element("h3", label), nested(content, f"task-{place}"))
    )


def _identifier(name: str, *, taken: set[str]) -> str:
    """An id that is like a name, of lower case letters, digits and hyphens, and not yet taken."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "task"
    return next(each for each in chain([stem], (f"{stem}-{n}" for n in count(2))) if each not in taken)


def _registered(*, taken: set[str]) -> Iterator[Section]:
    """Those of other packages. One that cannot be loaded warns, and the page is without it."""
    for entry in sorted(entry_points(group="subquad.sections"), key=lambda entry: entry.name):
        try:
            section = entry.load()
            if not isinstance(section, Section):
                raise TypeError(f"{section!r} is not a subquad.report.Section")
            if section.id in taken or not re.fullmatch(r"[a-z][a-z0-9-]*", section.id):
                raise ValueError(
                    f"its id {section.id!r} is taken or not of lower case letters, digits and hyphens"
                )
        except Exception as error:
            warnings.warn(f"section {entry.name!r} from {entry.value!r} left out: {error}", stacklevel=2)
            continue
        taken.add(section.id)
        yield section
