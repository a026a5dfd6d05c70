"""What a section of the page is: a title over whatever it has to say of what was found."""

from collections.abc import Callable
from dataclasses import dataclass

from subquad.report.findings import ComparisonFindings, Findings
from subquad.report.markup import Markup


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section about a task, which stands in one file. A page of several tasks has one for each.

    `id`: where links lead to; lower case letters, digits and hyphens.
    `title`: its heading, and its name in the contents.
    `of`: its content, None where it has nothing to say: the page is then without it.
    `task`: the name of the task that it is about; None: of every task.
    """

    id: str
    title: str
    of: Callable[[Findings], Markup | None]
    task: str | None = None


@dataclass(frozen=True, kw_only=True)
class SharedSection:
    """One section about all tasks of a comparison, which stands in one file; see `Section`."""

    id: str
    title: str
    of: Callable[[ComparisonFindings], Markup | None]
