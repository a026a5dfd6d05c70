"""The sections of the page that are read first: what was asked, the answer, leaderboard, figures."""

from collections.abc import Mapping, Sequence

from subquad.report import audit, units
from subquad.report.board import board, filtering, key
from subquad.report.cost import QUANTITIES, Curve
from subquad.report.figures import drawing
from subquad.report.figures.figure import Figure
from subquad.report.findings import Findings
from subquad.report.looks import grey_line
from subquad.report.markup import Markup, element, join
from subquad.report.table import download, scrolling

VERDICTS = {
    "take": "The answer",
    "lead": "A lead, and no answer yet",
    "baseline": "The answer",
    "open": "No answer yet",
    "nothing": "No answer",
}
SCALED = ("exponent", "crossover", "ratio")


def header(found: Findings) -> Markup:
    """What was asked, in words and in numbers."""
    asked = found.comparison
    splits = asked.get("summary", {}).get("splits", {})
    question = str(asked.get("summary", {}).get("question", ""))
    question = f"{question[:1].upper()}{question[1:]} " if question else ""
    question += (
        f"{units.plural(len(asked['rows']), 'attention mechanism')} in the same model, trained alike on "
        f"histories of at most {asked['length']:,} events, judged by {units.metric(asked['metric'])}"
    )
    if "test" in splits:
        question += f" on {splits['test']['examples']:,} examples that no choice was made on"
    runs = len(found.records)
    machines = [
        f"{about.get('cpu')}, {about.get('cores')} cores" for _, about in audit.machines(found.records)
    ]
    facts = {
        "Target": str(asked.get("target", "")),
        "Examples to train, validate, test": " · ".join(
            units.count(split["examples"]) for split in splits.values()
        ),
        "Budget": "",
        "Seeds": units.count(asked["seeds"]),
        "Runs": f"{runs:,} of {runs + found.missing:,}",
        "Machine": " | ".join(dict.fromkeys(machines)),
    }
    if "steps" in asked and "batch" in asked:
        facts["Budget"] = f"{asked['steps']:,} steps of {asked['batch'] * asked.get('accumulate', 1):,}"
    pairs = (element("div", element("dt", name), element("dd", fact)) for name, fact in facts.items() if fact)
    return element(
        "header",
        element("p", f"subquad compare · {asked['task']}", class_="eyebrow"),
        element("h1", str(asked["title"])),
        element("p", f"{question}.", class_="asked"),
        element("dl", *pairs, class_="facts"),
    )


def answer(found: Findings) -> Markup:
    told = found.answer
    before, name, after = told.sentence.partition(told.label) if told.label else (told.sentence, "", "")
    box = element(
        "div",
        element("h2", VERDICTS[told.verdict]),
        element("p", before, element("strong", name) if name else "", after, class_="sentence"),
        element("ul", *(element("li", reason) for reason in told.reasons)) if told.reasons else "",
        class_=f"answer {told.verdict}",
    )
    return element("section", box, id="answer", tabindex=-1)


def contents(titles: Mapping[str, str]) -> Markup:
    links = (element("li", element("a", title, href=f"#{name}")) for name, title in titles.items())
    return element("nav", element("ul", *links), aria_label="Contents")


def section(name: str, title: str, *content: str) -> Markup:
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *content, id=name, aria_labelledby=f"{name}-title")


def leaderboard(found: Findings) -> list[Markup]:
    notes = []
    if found.missing:
        notes.append(element("p", found.incomplete))
    if len({machine for row in found.rows if row.costs for machine in row.costs.machines}) > 1:
        told = "The runs come from different machines. Scores can be compared; speeds and memory cannot, "
        notes.append(element("p", told + "and no ratio of them is given."))
    return [*notes, filtering(), board(found.comparison, found.rows, found.looks), key(found.rows)]


def drawn(figure: Figure | None) -> Markup:
    """A figure with its legend, its table and its data."""
    if figure is None:
        return element("p", "There is nothing to draw: no run that would show here has come to its end.")
    buttons = (
        element(
            "button",
            look.drawn(line=figure.line),
            element("span", label),
            type="button",
            aria_pressed="true",
            data_hides=label,
            disabled=True,  # page.js enables it
        )
        for label, look in figure.legend
    )
    reference = element("span", grey_line(), figure.reference, class_="reference")
    panels = (
        element(
            "div",
            element("h3", panel.title),
            element("div", drawing.drawn(panel), class_="plot", role="img", aria_label=panel.description),
        )
        for panel in figure.panels
    )
    return element(
        "figure",
        element("figcaption", figure.caption, id=f"{figure.name}-caption"),
        element(
            "div",
            *buttons,
            reference if figure.reference else "",
            class_="legend",
            role="group",
            aria_label="Show or hide a mechanism",
        ),
        element("div", *panels, class_="panels"),
        element("details", element("summary", "Table"), figure.table.html()),
        download(
            figure.data.csv(), name=f"{figure.name}.csv", kind="text/csv", words="Download the data (CSV)"
        ),
        aria_labelledby=f"{figure.name}-caption",
    )


def scaling(curves: Sequence[Curve]) -> Markup:
    """Fitted exponents and crossovers of each mechanism beside fused softmax."""
    if not any(curve.cells for curve in curves):
        return Markup()
    shown = [name for name in QUANTITIES if any(curve.points(name) for curve in curves)]
    groups = (element("th", QUANTITIES[name], colspan=3, scope="colgroup") for name in shown)
    names = [element("th", name, scope="col", class_="number") for name in SCALED] * len(shown)
    head = (
        element("tr", element("th", "mechanism", rowspan=2, scope="col"), *groups),
        element("tr", *names),
    )
    body = (
        element(
            "tr",
            element("th", curve.label, element("small", _reach(curve)), scope="row"),
            *(element("td", cell, class_="number") for name in shown for cell in _scaled(curve, name)),
        )
        for curve in curves
    )
    table = element(
        "table",
        element("caption", "Beside fused softmax on the same machine"),
        element("thead", *head),
        element("tbody", *body),
        class_="grouped",
    )
    note = (
        "Cost grows as length to the power of the exponent, fitted to the upper half of the lengths. From "
        "the crossover on, a mechanism stays below fused softmax. The ratio to it is taken at the longest "
        "length that the mechanism managed."
    )
    title = "Exponents and crossovers"
    return join((element("h3", title), element("p", note), scrolling(table, label=title)))


def _reach(curve: Curve) -> str:
    if not curve.cells:
        return "at no length"
    if len(curve.machines) > 1:
        return f"on {len(curve.machines)} machines, not compared"
    return f"up to {curve.cells[-1].length:,} tokens"


def _scaled(curve: Curve, quantity: str) -> list[str]:
    found = curve.scaling(quantity)
    if found is None:
        return [units.ABSENT] * len(SCALED)
    slope = found.note if found.exponent is None else f"{found.exponent:.2f}"
    return [slope, str(found.crossover) if found.crossover else "none", units.times(found.at_longest)]
