"""Where names stand, of points beside their markers and of levels at an end: where they cover nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from subquad.notation import bare
from subquad.report.figures.figure import Axis, Level, Name, Point

# pixels: names must be free of one another at all of these, or from WIDE on, where the style sheet shows them
WIDTHS = (250.0, 300.0, 350.0, 410.0, 480.0, 560.0)
WIDE = 410.0
HEIGHT = 230.0  # at the least
MARGIN = 10.0  # about the figure, in which a name may stand
LETTER, LINE = 6.8, 14.0  # of a name: a letter's width, generously, and a line's height
MARKER = 7.0  # from a marker's middle to its edge
LONGEST = 22  # letters of a name
ABOVE, BELOW = -5, 15  # pixels from a level down to its name

PLACES = (  # right, down, anchor
    (11.0, 4.0, "start"),
    (-11.0, 4.0, "end"),
    (0.0, -12.0, "middle"),
    (0.0, 21.0, "middle"),
    (9.0, -9.0, "start"),
    (9.0, 17.0, "start"),
    (-9.0, -9.0, "end"),
    (-9.0, 17.0, "end"),
)


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        apart = self.right < other.left or other.right < self.left
        return not (apart or self.bottom < other.top or other.bottom < self.top)


def level_marks(heights: Mapping[str, float], points: Mapping[str, Point], x: Axis, y: Axis) -> list[Level]:
    """A level for each height, with its name where it covers the fewest markers and names of other levels."""
    rooms = [Room(points, [], [], x, y, width) for width in WIDTHS]
    placed: list[Level] = []
    for name, height in heights.items():
        tried = [
            Level(height=height, name=name, right=right, below=below)
            for below in (False, True)
            for right in (False, True)
        ]
        best = min(tried, key=lambda level: sum(room.covered(room.level(level)) for room in rooms))
        placed.append(best)
        for room in rooms:
            room.taken.append(room.level(best))
    return placed


def names(
    points: Mapping[str, Point], first: Sequence[str], levels: Sequence[Level], x: Axis, y: Axis
) -> list[Name]:
    """The names of points for which there is room, those of `first` before the others."""
    texts = short(list(points))
    placed: list[Name] = []
    for wide in (False, True):
        widths = [width for width in WIDTHS if width >= WIDE or not wide]
        rooms = {width: Room(points, placed, levels, x, y, width) for width in widths}
        for row in (*first, *(row for row in points if row not in first)):
            if any(name.row == row for name in placed):
                continue
            tried = (
                Name(
                    row=row, at=points[row], text=texts[row], right=right, down=down, anchor=anchor, wide=wide
                )
                for right, down, anchor in PLACES
            )
            fitting = next((name for name in tried if all(room.holds(name) for room in rooms.values())), None)
            if fitting:
                placed.append(fitting)
                for room in rooms.values():
                    room.taken.append(room.box(fitting))
    return placed


class Room:
    """What is taken in a figure of one width."""

    def __init__(
        self,
        points: Mapping[str, Point],
        placed: Sequence[Name],
        levels: Sequence[Level],
        x: Axis,
        y: Axis,
        width: float,
    ) -> None:
        self.x, self.y, self.width = x, y, width
        self.taken = [*map(self.marker, points.values()), *map(self.box, placed), *map(self.level, levels)]

    def holds(self, name: Name) -> bool:
        box = self.box(name)
        within = box.left > -MARGIN and box.right < self.width + MARGIN and box.top > -MARGIN
        return within and box.bottom < HEIGHT and not self.covered(box)

    def covered(self, box: Box) -> int:
        """How much of what is taken the box meets; beyond the edge below there is the axis."""
        return sum(box.meets(other) for other in self.taken) + (box.bottom > HEIGHT)

    def box(self, name: Name) -> Box:
        across, down = self.place(name.at)
        long = LETTER * len(name.text)
        left = across + name.right - {"start": 0.0, "middle": long / 2, "end": long}[name.anchor]
        base = down + name.down
        return Box(left, base - LINE + 3, left + long, base + 3)

    def level(self, level: Level) -> Box:
        base = self.place((0.0, level.height))[1] + (BELOW if level.below else ABOVE)
        long = LETTER * len(level.name)
        left = 0.99 * self.width - long if level.right else 0.01 * self.width
        return Box(left, base - LINE + 3, left + long, base + 3)

    def marker(self, at: Point) -> Box:
        across, down = self.place(at)
        return Box(across - MARKER, down - MARKER, across + MARKER, down + MARKER)

    def place(self, at: Point) -> Point:
        return self.x.place(at[0]) * self.width, (1 - self.y.place(at[1])) * HEIGHT


def short(labels: Sequence[str]) -> dict[str, str]:
    """Names without their options where these are not needed to tell them apart, and never long ones."""
    names = [bare(label) for label in labels]
    texts = (label if names.count(name) > 1 else name for label, name in zip(labels, names, strict=True))
    return {
        label: text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
        for label, text in zip(labels, texts, strict=True)
    }
