"""All tasks in one table: each mechanism's score on each, how it stands, its average and its mean rank."""

from collections.abc import Callable, Mapping

from subquad.report import formats
from subquad.report.findings import ComparisonFindings
from subquad.report.markup import Markup, element, join
from subquad.report.overview import BEST_MARK, OF_THESE_MODELS, Overview, OverviewRow, Place, TaskColumn
from subquad.report.section import SharedSection
from subquad.report.styles import Style
from subquad.report.table import Table, download, scrolling


def overview_content(findings: ComparisonFindings) -> Markup | None:
    shown = findings.overview
    if shown is None:
        return None
    means = [
        *([("Average", "normalised", "descending")] if shown.averaged else []),
        *([("Mean rank", "low is good", "ascending")] if shown.ranked else []),
    ]
    head = [
        element("th", "Mechanism", scope="col", data_first="ascending"),
        *(_task_head(task) for task in shown.tasks),
        *(_head(*mean, sort=mean[0] == "Mean rank") for mean in means),
    ]
    body = [
        element(
            "tr",
            element("th", _name(row.label, findings.styles), scope="row", data_value=row.label),
            *(_cell(place) for place in row.places),
            *([_number(row.average, formats.score)] if shown.averaged else []),
            *([_number(row.mean_rank, "{:.1f}".format)] if shown.ranked else []),
        )
        for row in shown.rows
    ]
    baselines = element(
        "tr",
        element("th", "best baseline", scope="row"),
        *(_baseline(task) for task in shown.tasks),
        *[element("td")] * len(means),
        class_="baseline",
    )
    caption = "Scores on the test split of each task, best mean rank first"
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body, baselines),
        class_="overview",
    )
    return join((element("p", f"{caption}."), scrolling(table, label="Overview"), _key(shown), _data(shown)))


def _task_head(task: TaskColumn) -> Markup:
    if task.higher_is_better:
        return _head(task.label, task.metric, "descending")
    return _head(task.label, f"{task.metric}, low is good", "ascending")


def _head(name: str, unit: str, first: str, *, sort: bool = False) -> Markup:
    return element(
        "th",
        name,
        element("small", unit),
        scope="col",
        class_="number",
        data_first=first,
        aria_sort=first if sort else None,
    )


def _name(label: str, styles: Mapping[str, Style]) -> Markup:
    return element("span", styles[label].drawn(line=False), element("span", label), class_="name")


def _cell(place: Place) -> Markup:
    """The score, a bar for how much of the way to a perfect one it is, and what is to be known of it."""
    marks = [element("small", place.note)] if place.note else []
    if place.score is None:
        return element("td", *(marks or [formats.ABSENT]), class_="number")
    mean, sign, spread = formats.mean_deviation(place.score.mean, place.score.deviation).partition(" ± ")
    if place.beside_baseline in ("below", "not told apart"):
        words = {"below": "below baseline", "not told apart": "≈ baseline"}[place.beside_baseline]
        sign_of_warning = element("span", "▲ ", aria_hidden="true")
        marks.insert(0, element("span", sign_of_warning, words, class_="mark"))
    bar = ""
    if place.normalised is not None:
        share = min(1.0, max(0.0, place.normalised))
        bar = element("span", class_="bar", style=f"--share: {share:.3f}", aria_hidden="true")
    shown = [mean + sign + spread]
    if place.best:
        star = element("span", "★ ", role="img", aria_label="among the best")
        shown = [star, element("b", mean), sign + spread]
    return element("td", *shown, bar, *marks, class_="number", data_value=place.score.mean)


def _number(value: float | None, shown: Callable[[float], str]) -> Markup:
    text = formats.ABSENT if value is None else shown(value)
    return element("td", text, class_="number", data_value=value)


def _baseline(task: TaskColumn) -> Markup:
    name = element("small", task.baseline) if task.baseline else ""
    return element("td", formats.score(task.baseline_score), name, class_="number")


def _key(shown: Overview) -> Markup:
    """How to read the table."""
    notes = {
        "★": BEST_MARK + (f"{OF_THESE_MODELS}." if shown.few_seeds else "."),
        "▲": "below the best baseline, or not told apart from it.",
        "Bar": "how much of the way from the majority's score to a perfect one.",
        **shown.notes,
    }
    pairs = (element("div", element("dt", name), element("dd", text)) for name, text in notes.items())
    return element("dl", *pairs, class_="key")


def _data(shown: Overview) -> Markup:
    columns = ["mechanism"]
    for task in shown.tasks:
        columns += [f"{task.label}: {task.metric}", f"{task.label}: normalised", f"{task.label}: rank"]
    table = Table(
        caption="Overview",
        columns=(*columns, "average", "mean rank"),
        rows=tuple(_values(row) for row in shown.rows),
    )
    return download(table.csv(), name="overview.csv", kind="text/csv", words="Download the data (CSV)")


def _values(row: OverviewRow) -> tuple[str | float | None, ...]:
    places = [
        value
        for place in row.places
        for value in (place.score and place.score.mean, place.normalised, place.rank)
    ]
    return (row.label, *places, row.average, row.mean_rank)


OVERVIEW = SharedSection(id="overview", title="Overview", of=overview_content)
