"""What was equal for all mechanisms, how that is known, and how many parameters each has."""

from collections.abc import Sequence

from subquad.report import formats
from subquad.report.fairness import Equality
from subquad.report.findings import Findings
from subquad.report.leaderboard import BoardRow
from subquad.report.markup import Markup, element, join
from subquad.report.section import Section
from subquad.report.table import Cell, Table, scrolling

EVIDENCE = "What records can show is checked in them; the rest follows from how the runs are made."
PARAMETERS = (
    "Those in attention are its projections and the mechanism's own weights. A row with over 10 % more "
    "than softmax is marked: its score may be theirs."
)


def fairness_content(findings: Findings) -> Markup | None:
    if not findings.equalities:
        return None
    parts = [element("p", f"{_verdict(findings.equalities)} {EVIDENCE}"), _table(findings.equalities)]
    parameters = _parameters(findings.rows)
    if parameters.rows:
        parts += [element("h3", "Parameters"), element("p", PARAMETERS), parameters.html()]
    return join(parts)


def _verdict(equalities: Sequence[Equality]) -> str:
    broken = [equality.what for equality in equalities if equality.broken]
    if not broken:
        return "The mechanism is all that differed."
    return f"Not all was equal: {formats.listed(broken)}. Scores may differ for that reason."


def _table(equalities: Sequence[Equality]) -> Markup:
    head = element("tr", *(element("th", name, scope="col") for name in ("what", "value", "how it is known")))
    rows = (
        element(
            "tr",
            element("th", equality.what, scope="row"),
            element("td", equality.value),
            element("td", ("▲ " if equality.broken else "") + equality.evidence),
            class_="broken" if equality.broken else None,
        )
        for equality in equalities
    )
    caption = "What was equal for all mechanisms"
    table = element("table", element("caption", caption), element("thead", head), element("tbody", *rows))
    return scrolling(table, label=caption)


def _parameters(rows: Sequence[BoardRow]) -> Table:
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        if row.parameters is None:
            continue
        beyond = row.parameters.beyond_reference
        cells.append(
            (
                row.label,
                row.parameters.total,
                row.parameters.attention,
                row.parameters.grows_with_length,
                None if beyond is None else 100 * beyond,
                "over 10 % more" if row.parameters.marked else "",
            )
        )
    columns = ("mechanism", "in all", "in attention", "growing with length", "beyond softmax, %", "mark")
    shown = len(columns) if any(row[-1] for row in cells) else len(columns) - 1
    return Table(
        caption="Of the whole model", columns=columns[:shown], rows=tuple(row[:shown] for row in cells)
    )


FAIRNESS = Section(id="fairness", title="Fairness", of=fairness_content)
