"""What a figure is: marks on axes, what is said of it to those who do not see it, the table behind it.

Nothing here knows how it is drawn: see `drawing`. Colours are variables of the style sheet, which has a set
for light and one for dark pages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from subquad.report.styles import Style
from subquad.report.table import Table

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    title: str = ""
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Line:
    row: str | None  # the legend's button of this row hides it; None: never hidden
    points: tuple[Point, ...]
    colour: str
    width: float
    dash: str = ""
    opacity: float = 1.0
    words: str = ""  # that appear when it is pointed at


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A marker."""

    row: str | None
    at: Point
    path: str  # about the origin, in pixels
    colour: str
    words: str
    hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Disc:
    row: str
    at: Point
    radius: float  # in pixels
    colour: str


@dataclass(frozen=True, kw_only=True)
class Whisker:
    row: str
    at: Point
    low: float
    high: float
    colour: str


@dataclass(frozen=True, kw_only=True)
class Level:
    """A dashed line across, with its name on it."""

    height: float
    name: str
    right: bool  # at which end the name stands
    below: bool = False


@dataclass(frozen=True, kw_only=True)
class Name:
    """A row's name beside its marker."""

    row: str
    at: Point
    text: str
    right: float  # pixels from the marker to the text
    down: float
    anchor: str  # "start", "middle", "end"
    wide: bool  # whether there is room for it in a wide figure alone


Mark = Line | Sign | Disc | Whisker | Level | Name


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes with the marks on it, the first of them farthest back."""

    title: str
    description: str  # in words, for those who do not see it
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    name: str  # of its place in the page and of its file
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, Style], ...]
    line: bool  # whether the legend shows lines
    reference: str = ""  # what the grey line is, if there is one
    table: Table  # what is drawn, for people
    data: Table  # the same and all there is, to download


def line(row: str, style: Style, points: Sequence[Point], *, words: str = "", thin: bool = False) -> Line:
    """A row's line in its style; a thin one is background, and says nothing when pointed at."""
    if thin:
        return Line(row=row, points=tuple(points), colour=style.colour, width=1, opacity=0.3)
    return Line(row=row, points=tuple(points), colour=style.colour, width=2.25, dash=style.dash, words=words)


def sign(row: str, style: Style, at: Point, words: str) -> Sign:
    return Sign(row=row, at=at, path=style.marker, colour=style.colour, words=words)


def ticks(low: float, high: float, *, most: int = 6) -> tuple[tuple[float, str], ...]:
    """Round values of an axis, all with as many decimals, from `low` to `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= most)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple((place * step, f"{place * step:,.{decimals}f}") for place in range(first, last + 1))
