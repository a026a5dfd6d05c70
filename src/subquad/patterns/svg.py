"""A drawing of a pattern as an SVG: whole in itself, for light and dark, with a title and a description.

Covered cells that touch become one rectangle, and rectangles of one shade one path, so that files stay small.
"""

from collections.abc import Iterator
from textwrap import wrap
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from jaxtyping import Int
from torch import Tensor

from subquad.patterns.drawing import LEVELS, Drawing, Panel, coverage, levels

CELLS = 256  # across at most; longer patterns are binned
SIDE, SMALL = 512, 256  # pixels of a pattern at most, and where there are several
CELL = 24  # pixels of a cell at most; always a whole number of them
LEFT, TOP, GAP, EDGE = 62, 46, 30, 24  # pixels: for the axes' numbers and names, between panels, around all
ABREAST = 4  # panels
LINE = 19  # pixels
CHARACTER = {"name": 7.9, "muted": 7.2}  # pixels at most, or on average
NARROWEST = 460  # for the text to have room
STYLE = """
svg {
  --page: #fdfdfb; --ground: #ffffff; --ink: #22262b; --muted: #5f666e; --rule: #b4b4ad; --pair: #17608f;
  font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
@media (prefers-color-scheme: dark) {
  svg {
    --page: #15181c; --ground: #1c2025; --ink: #e8eaed; --muted: #a3abb4; --rule: #555d66; --pair: #7cc0ee;
  }
}
text { fill: var(--ink); }
.name { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.muted { fill: var(--muted); }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.page { fill: var(--page); }
.ground { fill: var(--ground); }
.frame { fill: none; stroke: var(--rule); }
.tick { stroke: var(--muted); }
.pair { fill: var(--pair); shape-rendering: crispEdges; }
.of-1 { fill-opacity: 0.3; }
.of-2 { fill-opacity: 0.5; }
.of-3 { fill-opacity: 0.75; }
"""


def svg(drawing: Drawing) -> str:
    """The drawing as a whole SVG document."""
    several = len(drawing.panels) > 1
    cells = min(drawing.length, CELLS)
    cell = max(1, min(CELL, (SMALL if several else SIDE) // cells))
    side = cell * cells
    abreast = min(ABREAST, len(drawing.panels))
    width = max(NARROWEST, abreast * (LEFT + side + GAP) - GAP + 2 * EDGE)
    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "width": str(width)})
    root.set("aria-labelledby", "pattern-title pattern-description")
    sentences = [f"{panel.title}: {panel.sentence()}".removeprefix(": ") for panel in drawing.panels]
    SubElement(root, "title", {"id": "pattern-title"}).text = f"Attention pattern {drawing.expression}"
    SubElement(root, "desc", {"id": "pattern-description"}).text = (
        f"Which of {drawing.length:,} keys each query sees, queries from top to bottom and keys from left to "
        f"right. {'. '.join(sentences)}."
    )
    SubElement(root, "style").text = STYLE
    SubElement(root, "rect", {"class": "page", "width": "100%", "height": "100%"})

    y = _paragraph(root, drawing.expression, x=EDGE, y=EDGE, width=width - 2 * EDGE, kind="name")
    for place, panel in enumerate(drawing.panels):
        x = EDGE + place % abreast * (LEFT + side + GAP)
        group = SubElement(root, "g", {"transform": f"translate({x + LEFT} {y + TOP + several * LINE})"})
        if several:
            _text(group, _cut(panel.title, side), x=0, y=-TOP, kind="name")
        _axes(group, length=drawing.length, side=side)
        _pairs(group, panel, cells=cells, cell=cell)
        if place % abreast == abreast - 1 or panel is drawing.panels[-1]:
            y += several * LINE + TOP + side + GAP
    if drawing.length > CELLS:
        y = _key(root, x=EDGE, y=y)
    for sentence in sentences:
        y = _paragraph(root, sentence, x=EDGE, y=y, width=width - 2 * EDGE, kind="muted")
    height = y + EDGE // 2
    root.set("height", str(height))
    root.set("viewBox", f"0 0 {width} {height}")
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def rectangles(cells: Int[Tensor, "r c"], level: int) -> Iterator[tuple[int, int, int, int]]:
    """x, y, width and height of rectangles that hold all cells of a level, and no other: runs that repeat."""
    begun: dict[tuple[int, int], int] = {}  # the row in which a run, from x to its end, was first met
    for y, row in enumerate([*cells.tolist(), []]):
        runs = set(_runs(row, level))
        for run in begun.keys() - runs:
            top = begun.pop(run)
            yield run[0], top, run[1] - run[0], y - top
        for run in runs:
            begun.setdefault(run, y)


def _runs(row: list[int], level: int) -> Iterator[tuple[int, int]]:
    start = None
    for x, found in enumerate([*row, None]):
        if found == level and start is None:
            start = x
        elif found != level and start is not None:
            yield start, x
            start = None


def _pairs(group: Element, panel: Panel, *, cells: int, cell: int) -> None:
    side = str(cell * cells)
    SubElement(group, "rect", {"class": "ground", "width": side, "height": side})
    exact = len(panel.mask) == cells
    drawn = (
        panel.mask.long() * max(LEVELS) if exact else levels(coverage(panel.mask, rows=cells, columns=cells))
    )
    scaled = SubElement(group, "g", {"transform": f"scale({cell})"})
    for level in LEVELS:
        if path := "".join(f"M{x} {y}h{w}v{h}h-{w}z" for x, y, w, h in sorted(rectangles(drawn, level))):
            SubElement(scaled, "path", {"class": f"pair of-{level}", "d": path})
    outer = str(cell * cells + 1)
    SubElement(group, "rect", {"class": "frame", "x": "-.5", "y": "-.5", "width": outer, "height": outer})


def _axes(group: Element, *, length: int, side: int) -> None:
    _text(group, "keys", x=side / 2, y=-26, kind="middle")
    queries = _text(group, "queries", x=0, y=0, kind="middle")
    queries.set("transform", f"translate(-46 {side / 2:g}) rotate(-90)")
    step = 1 << max(0, (length - 1).bit_length() - 2)  # three or four numbers
    for token in range(0, length, step):
        at = round((token + 0.5) / length * side, 1)
        _text(group, f"{token:,}", x=at, y=-10, kind="muted middle")
        _text(group, f"{token:,}", x=-9, y=at + 4, kind="muted end")
        for end in ({"x1": at, "x2": at, "y1": -5, "y2": -1}, {"x1": -5, "x2": -1, "y1": at, "y2": at}):
            SubElement(
                group, "line", {"class": "tick", **{name: f"{value:g}" for name, value in end.items()}}
            )


def _key(root: Element, *, x: float, y: float) -> int:
    """What the shades of cells mean."""
    _text(root, "of a cell's pairs", x=x, y=y, kind="muted")
    x += 17 * CHARACTER["muted"]
    for level, words in LEVELS.items():
        place = {"x": f"{x:g}", "y": f"{y - 10:g}", "width": "12", "height": "12"}
        SubElement(root, "rect", {"class": f"pair of-{level}", **place})
        _text(root, words, x=x + 18, y=y, kind="muted")
        x += 40 + len(words) * CHARACTER["muted"]
    return int(y + LINE)


def _paragraph(root: Element, words: str, *, x: float, y: float, width: float, kind: str) -> int:
    """Text in lines that fit; where the next line would be."""
    for line in wrap(words, int(width / CHARACTER[kind])):
        _text(root, line, x=x, y=y, kind=kind)
        y += LINE
    return int(y)


def _cut(words: str, width: float) -> str:
    most = int(width / CHARACTER["name"])
    return words if len(words) <= most else words[: most - 1] + "…"


def _text(parent: Element, words: str, *, x: float, y: float, kind: str) -> Element:
    text = SubElement(parent, "text", {"class": kind, "x": f"{x:g}", "y": f"{y:g}"})
    text.text = words
    return text
