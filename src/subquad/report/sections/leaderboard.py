"""The leaderboard as a table of the page: every score with its seeds drawn beside it, failures in place."""

from collections.abc import Callable, Mapping, Sequence

from subquad.notation import bare
from subquad.report import formats
from subquad.report.findings import Findings
from subquad.report.leaderboard import REFERENCE, BoardRow, carried, extent, near_baselines
from subquad.report.markup import Markup, element, join
from subquad.report.question import Question
from subquad.report.section import Section
from subquad.report.statistics import MIN_SEEDS, Summary
from subquad.report.styles import Style
from subquad.report.success import Success
from subquad.report.table import scrolling

WIDTH, HEIGHT = 200, 26  # of the drawing of a score, in pixels
COSTS = {  # columns, and the units of their numbers
    "Training": "{units}/s",
    "Latency": "ms a sequence",
    "Memory": "MB in training",
    "State": "MB a row",  # where one is carried
    "Parameters": "in all",
}
STATE = (
    "what is carried of one row from window to window, the most while test was read. A state that grows is "
    "that of the longest document."
)
SEVERAL_MACHINES = (
    "The runs come from different machines. Scores can be compared; speeds and memory cannot, and no ratio "
    "of them is given."
)


def leaderboard_content(findings: Findings) -> Markup:
    question, rows = findings.question, findings.rows
    notes = []
    if findings.missing:
        notes.append(element("p", findings.incomplete))
    if len({machine for row in rows if row.costs for machine in row.costs.machines}) > 1:
        notes.append(element("p", SEVERAL_MACHINES))
    return join((*notes, _filter(), _board(question, rows, findings.styles), _key(question, rows)))


def _filter() -> Markup:
    """Where rows are asked for by name; of no use without JavaScript, and hidden until it is there."""
    return element(
        "div",
        element("label", "Show rows named", for_="filter"),
        element("input", type="search", id="filter", autocomplete="off", spellcheck="false"),
        element("output", for_="filter", aria_live="polite"),
        class_="filter",
        hidden=True,
    )


def _board(question: Question, rows: Sequence[BoardRow], styles: Mapping[str, Style]) -> Markup:
    metric = question.metric.label
    lettered = any(row.group for row in rows)
    costs = [name for name in COSTS if name != "State" or carried(rows)]
    drawn = [row for row in rows if row.kind == "mechanism"] + near_baselines(rows)
    across = _scale(drawn)
    baselines = [row.score.mean for row in near_baselines(rows) if row.score]
    claims = any(row.score and row.score.interval for row in rows)
    best = "descending" if question.metric.higher_is_better else "ascending"  # comes first
    head = [
        element("th", "Mechanism", scope="col", data_first="ascending"),
        element(
            "th",
            f"{metric} on test",
            _small("mean ± deviation"),
            scope="col",
            class_="number",
            data_first=best,
            aria_sort=best,
        ),
        element(
            "th", "Seeds and 95 % interval" if claims else "Seeds", _axis(drawn), scope="col", class_="strip"
        ),
        element("th", "Alike", _small("share a letter"), scope="col", class_="letters") if lettered else "",
        _head("Above baseline", "the best one", first="descending"),
        *(
            _head(
                name,
                COSTS[name].format(units=question.units),
                first="descending" if name == "Training" else "ascending",
            )
            for name in costs
        ),
    ]
    body = [
        element(
            "tr",
            element("th", *_name(row, styles), scope="row", data_value=row.label),
            *(
                _cells(row, styles, across if row in drawn else None, baselines, costs, lettered=lettered)
                if row.score
                else [_unscored(row, columns=3 + len(costs) + lettered)]
            ),
            class_=row.kind,
        )
        for row in rows
    ]
    table = element(
        "table",
        element(
            "caption", f"Leaderboard by {metric} on the test split, best first, baselines among the rows"
        ),
        element("thead", element("tr", *head)),
        element("tbody", *body),
        class_="board",
    )
    return scrolling(table, label="Leaderboard")


def _head(name: str, unit: str, *, first: str) -> Markup:
    """Of a column that is sorted by its numbers, `first` the way that has the best at the top."""
    return element("th", name, _small(unit), scope="col", class_="number", data_first=first)


def _name(row: BoardRow, styles: Mapping[str, Style]) -> list[str]:
    if row.kind == "baseline":
        return [element("span", row.label, class_="name"), _small("baseline")]
    name = bare(row.label)
    options = row.label.removeprefix(f"{name}:")  # of a mixture they stand within
    under = [part for part in (options, row.form) if part and part != name]
    if row.missing:
        under.append(f"{row.missing} of {formats.plural(row.planned, 'run')} missing")
    named = element("span", styles[row.label].drawn(line=False), element("span", name), class_="name")
    notes = [_small(", ".join(under))]
    if row.score:
        notes += [_failure_mark(row)] if row.failures else []
        notes += _success(row.success) if row.success and row.success.stuck else []
    return [named, *notes]


def _success(success: Success) -> list[Markup]:
    """How many runs learnt nothing, and what the others reached."""
    stuck = _mark(f"{success.stuck} of {success.runs} not above majority")
    rest = [_small(f"mean of the rest {formats.score(success.mean)}")] if success.above else []
    return [stuck, *rest]


def _cells(
    row: BoardRow,
    styles: Mapping[str, Style],
    across: Callable[[float], float] | None,
    baselines: Sequence[float],
    costs: Sequence[str],
    *,
    lettered: bool,
) -> list[Markup]:
    assert row.score
    mean, sign, spread = formats.mean_deviation(row.score.mean, row.score.deviation).partition(" ± ")
    best = f"best {formats.score(row.score.best)}" if row.score.deviation is not None else ""
    shown = (element("b", mean), sign + spread, _small(best))
    score = element("td", *shown, class_="number score", data_value=row.score.mean)
    colour = styles[row.label].colour if row.label in styles else None
    picture = _drawing(row.score, across, baselines, colour) if across else ""
    strip = element("td", picture, _interval(row), class_="strip")
    letters = [element("td", row.group or formats.ABSENT, class_="letters")] if lettered else []
    if row.kind == "baseline":
        return [score, strip, *letters, *[element("td", class_="number")] * (1 + len(costs))]
    cells = _costs(row)
    return [score, strip, *letters, _against_baseline(row), *(cells[name] for name in costs)]


def _against_baseline(row: BoardRow) -> Markup:
    if row.over_baseline is None:
        return element("td", "no baseline", class_="number")
    mark = _mark(row.beside_baseline) if row.beside_baseline in ("below", "not told apart") else ""
    return element(
        "td", formats.signed(row.over_baseline), mark, class_="number", data_value=row.over_baseline
    )


def _costs(row: BoardRow) -> dict[str, Markup]:
    """A cell for each of `COSTS`."""
    costs, parameters, ratios = row.costs, row.parameters, row.ratios
    assert costs
    assert parameters
    quartiles = ""
    if costs.latency_low_ms is not None and costs.latency_high_ms is not None:
        low, high = formats.significant(costs.latency_low_ms), formats.significant(costs.latency_high_ms)
        quartiles = f"{low} – {high}"

    def cell(value: float | None, *notes: str) -> Markup:
        small = (_small(note) for note in notes if note)
        return element("td", formats.significant(value), *small, class_="number", data_value=value)

    def beside(ratio: float | None) -> str:
        return "" if ratio is None or row.label == REFERENCE else f"{formats.times(ratio)} softmax"

    grown = ""
    if parameters.beyond_reference is not None and row.label != REFERENCE:
        grown = _mark(formats.percent(parameters.beyond_reference)) if parameters.marked else ""
    total = parameters.total
    return {
        "Training": cell(costs.units_per_second, beside(ratios and ratios.units_per_second)),
        "Latency": cell(costs.latency_ms, quartiles),
        "Memory": cell(costs.training_peak_mb, beside(ratios and ratios.training_peak_mb)),
        "State": cell(costs.state_mb),
        "Parameters": element("td", formats.count(total), grown, class_="number", data_value=total),
    }


def _unscored(row: BoardRow, *, columns: int) -> Markup:
    """One cell over the whole width: why there is no score."""
    if row.refusal:
        parts: list[str] = [_mark("cannot take this task"), element("span", row.refusal, class_="reason")]
    elif not row.failures:
        parts = ["not run yet"]
    else:
        reasons = dict.fromkeys(failure.reason for failure in row.failures if failure.reason)
        parts = [_failure_mark(row), element("span", "; ".join(reasons), class_="reason")]
    return element("td", *parts, colspan=columns, class_="unscored")


def _failure_mark(row: BoardRow) -> Markup:
    kinds = formats.listed(list(dict.fromkeys(failure.status for failure in row.failures)))
    return _mark(f"{kinds}, {len(row.failures)} of {formats.plural(row.planned, 'run')}")


def _drawing(
    score: Summary, across: Callable[[float], float], baselines: Sequence[float], colour: str | None
) -> Markup:
    """The seeds as dots, their interval as a bar, their mean as a stroke, the baselines as dashed lines."""
    middle = HEIGHT / 2
    shapes = [
        element("line", x1=across(x), x2=across(x), y1=0, y2=HEIGHT, class_="baseline-line")
        for x in baselines
    ]
    if score.interval:
        left, right = across(score.interval.low), across(score.interval.high)
        shapes.append(
            element("rect", x=left, width=right - left, y=middle - 4, height=8, rx=4, class_="interval")
        )
    style = f"fill: {colour}" if colour else None
    shapes += [
        element("circle", cx=across(x), cy=middle, r=3.8, class_="seed", style=style) for x in score.scores
    ]
    if len(score.scores) > 1:
        mean = across(score.mean)
        shapes.append(element("line", x1=mean, x2=mean, y1=middle - 8, y2=middle + 8, class_="mean"))
    return element(
        "svg", *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", width=WIDTH, height=HEIGHT, aria_hidden="true"
    )


def _interval(row: BoardRow) -> Markup:
    score = row.score
    if score is None or (row.kind == "baseline" and score.interval is None):
        return Markup()
    seeds = "one seed" if len(score.scores) == 1 else f"{len(score.scores)} seeds"
    if score.interval is None:
        return _small(f"{seeds}, no interval")
    shown = f"{formats.score(score.interval.low)} – {formats.score(score.interval.high)}"
    return _small(f"{shown}, {seeds}" if row.kind == "mechanism" and score.over == "examples" else shown)


def _axis(rows: Sequence[BoardRow]) -> Markup:
    if not any(row.score for row in rows):
        return Markup()
    low, high = _ends(rows)
    return element(
        "small", element("span", formats.score(low)), element("span", formats.score(high)), class_="axis"
    )


def _scale(rows: Sequence[BoardRow]) -> Callable[[float], float]:
    """From a score to its place in the drawing."""
    low, high = _ends(rows)
    return lambda score: round(6 + (WIDTH - 12) * (score - low) / (high - low), 1)


def _ends(rows: Sequence[BoardRow]) -> tuple[float, float]:
    values = [value for row in rows if row.score for value in extent(row.score)] or [0.0]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _small(text: str) -> Markup:
    return element("small", text) if text else Markup()


def _mark(text: str) -> Markup:
    """A word of warning, which is told by its sign and words and not by its colour alone."""
    return element("span", element("span", "▲ ", aria_hidden="true"), text, class_="mark")


def _key(question: Question, rows: Sequence[BoardRow]) -> Markup:
    """How to read the table."""
    scored = [row.score for row in rows if row.kind == "mechanism" and row.score]
    by_example = not any(score.over == "seeds" for score in scored)
    claims = {}
    if any(score.interval for score in scored):
        claims["Interval"] = (
            "where the score on ever more examples and seeds lies, with 95 % confidence; examples of one "
            "entity count as one. "
            if by_example
            else "where the mean over ever more seeds lies, with 95 % confidence. It knows nothing of other "
            "test examples, since these records keep no scores of single ones. "
        ) + "Two rows can be told apart though theirs overlap."
    if any(row.group for row in rows):
        alike = "on the same examples with the same seeds" if by_example else "seed by seed"
        claims["Alike"] = (
            f"rows that share a letter cannot be told apart. They are judged by their differences {alike}, "
            "in which what is hard for both cancels, corrected for the number of pairs (Holm)."
        )
    if any(len(score.scores) < MIN_SEEDS for score in scored):
        claims["Seeds"] = "fewer than three say nothing of other seeds, and no row is better for certain."
    if any(row.success and row.success.stuck for row in rows):
        claims["Above majority"] = (
            "runs that beat it by more than other test examples would explain. The others may have learnt "
            "nothing, and a mean over both is a figure of neither."
        )
    notes = {
        "Baseline": "what is reached without any attention. A row is marked unless it is above it for "
        "certain, by the same comparison.",
        "Training": f"{question.units} per second through forward, backward and optimiser, after the first "
        "step.",
        "Latency": "one sequence of full length through the trained model, with quartiles.",
        "Memory": "what one training step takes beyond what was in use before it.",
        **({"State": STATE} if carried(rows) else {}),
        "Parameters": "marked where they are over 10 % more than those of softmax: the score may be theirs.",
    }
    notes = claims | notes
    pairs = (element("div", element("dt", name), element("dd", text)) for name, text in notes.items())
    return element("dl", *pairs, class_="key")


LEADERBOARD = Section(id="leaderboard", title="Leaderboard", of=leaderboard_content)
