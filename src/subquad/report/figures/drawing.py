"""A panel as SVG that fits any width: places are percentages, so that text and markers keep their size.

Lines have no percentages; they are drawn into a square that is stretched, whose strokes are not.
"""

from collections.abc import Sequence

from subquad.report.figures.figure import Axis, Disc, Level, Line, Mark, Name, Panel, Sign, Whisker
from subquad.report.figures.names import ABOVE, BELOW
from subquad.report.markup import Markup, element

SQUARE = 1000  # units of the stretched square
CAP = 5  # pixels: half the width of a whisker's end


def panel_svg(panel: Panel) -> Markup:
    marks = (_mark(mark, panel.x, panel.y) for mark in panel.marks)
    return element("svg", *_axes(panel.x, panel.y), *marks, class_="area", aria_hidden="true")


def _axes(x: Axis, y: Axis) -> Sequence[Markup]:
    rows = [
        element("line", x2="100%", y1=height, y2=height, class_="grid")
        + element("text", words, x=-8, y=height, dy=".35em", class_="tick end")
        for value, words in y.ticks
        for height in [_percent(1 - y.place(value))]
    ]
    columns = [
        element("text", words, x=_percent(x.place(value)), y="100%", dy=18, class_="tick")
        for value, words in x.ticks
    ]
    base = element("line", x2="100%", y1="100%", y2="100%", class_="base")
    title = element("text", x.title, x="50%", y="100%", dy=38, class_="tick")
    return [*map(Markup, rows), base, *columns, title]


def _mark(mark: Mark, x: Axis, y: Axis) -> Markup:
    match mark:
        case Line():
            return _line(mark, x, y)
        case Level():
            height = _percent(1 - y.place(mark.height))
            rule = element("line", x2="100%", y1=height, y2=height, class_="baseline-line")
            where = {"x": "99%", "class_": "tick end"} if mark.right else {"x": "1%", "class_": "tick start"}
            down = BELOW if mark.below else ABOVE
            return Markup(rule + element("text", mark.name, y=height, dy=down, **where))
        case Whisker():
            return _whisker(mark, x, y)
        case Disc():
            circle = element("circle", r=round(mark.radius, 1), fill=mark.colour, fill_opacity=0.22)
            return _at(mark.at, x, y, circle, row=mark.row)
        case Sign():
            style = {"fill": "none", "stroke": mark.colour} if mark.hollow else {"fill": mark.colour}
            shape = element("path", d=mark.path, stroke_width=2.25 if mark.hollow else None, **style)
            target = element("circle", r=10, class_="target")
            return _at(mark.at, x, y, element("title", mark.words), shape, target, row=mark.row)
        case Name():
            text = element("text", mark.text, x=mark.right, y=mark.down, class_=f"name {mark.anchor}")
            return _at(mark.at, x, y, text, row=mark.row, class_="wide" if mark.wide else None)


def _at(
    at: tuple[float, float], x: Axis, y: Axis, *shapes: Markup, row: str | None, class_: str | None = None
) -> Markup:
    """Shapes about a point, in pixels from it."""
    return element(
        "svg",
        *shapes,
        x=_percent(x.place(at[0])),
        y=_percent(1 - y.place(at[1])),
        data_row=row,
        class_=class_,
    )


def _line(line: Line, x: Axis, y: Axis) -> Markup:
    places = [
        f"{SQUARE * x.place(at):.1f} {SQUARE * (1 - y.place(height)):.1f}" for at, height in line.points
    ]
    path = f"M{'L'.join(places)}"
    stroke = element(
        "path",
        d=path,
        stroke=line.colour,
        stroke_width=line.width,
        stroke_dasharray=line.dash or None,
        stroke_opacity=None if line.opacity == 1 else line.opacity,
    )
    target = [element("title", line.words), element("path", d=path, class_="target")] if line.words else []
    return element(
        "svg",
        stroke,
        *target,
        viewBox=f"0 0 {SQUARE} {SQUARE}",
        preserveAspectRatio="none",
        data_row=line.row,
        class_="lines",
    )


def _whisker(whisker: Whisker, x: Axis, y: Axis) -> Markup:
    at = _percent(x.place(whisker.at[0]))
    low, high = (_percent(1 - y.place(value)) for value in (whisker.low, whisker.high))
    style = {"stroke": whisker.colour, "stroke_width": 1.5}
    ends = (
        element("svg", element("line", x1=-CAP, x2=CAP, **style), x=at, y=height) for height in (low, high)
    )
    bar = element("line", x1=at, x2=at, y1=low, y2=high, **style)
    return element("g", bar, *ends, data_row=whisker.row)


def _percent(part: float) -> str:
    return f"{100 * part:.2f}%"
