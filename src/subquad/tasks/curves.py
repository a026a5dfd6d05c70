"""Pictures of dashed curves, many side by side: what Pathfinder asks about.

Linsley et al. (2018, arXiv:1805.08315), section 4, as the code of the authors draws them
(github.com/drewlinsley/pathfinder): two long curves of dashes that begin near one another, short curves as
distractors, and two discs, one at the start of a long curve and one at the end of it or of the other.

A dash begins a margin behind the end of the last one. Its direction is drawn by cos^2 of how far it turns,
times the continuity; a dash that comes too close to one that stands already is drawn again, three times in
all. A distractor that finds no place is left out.

Theirs begins a picture anew whenever a long curve finds no place, which at 64 pixels is nearly always; here
both curves first go back some dashes, some times. All pictures of a block grow together, dash by dash, and
each kind of dash is drawn once and stamped. Directions are those to the pixels of a circle, so that the same
seed makes the same bytes on every machine.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from subquad.tasks.errors import DataError
from subquad.tasks.random_bits import RandomBits

TRIES = 3  # for the direction of a dash
BACK = 4  # dashes that are taken back where the next finds no place, of both curves together
BACKS = 64  # times before a picture is begun anew
RETRIES = 5  # of a distractor
PLACES = 16  # for its first dash
SUBPIXELS = 4  # of a pixel, each way
HOPELESS = 300  # beginnings of one picture

NEAR, FAR = np.uint8(1), np.uint8(2)  # around a dash: what no other may overlap, and where none may end


@dataclass(frozen=True, kw_only=True)
class Style:
    """How pictures of one size are drawn, in pixels.

    `side`: of the square picture.
    `border`: that stays empty.
    `length`, `thickness`, `margin`: of a dash, and from one to the next twice the margin.
    `apart`: from the start of one long curve to that of the other.
    `radius`: of the discs.
    `continuity`: how little a curve turns.
    `dashes`: of a long curve.
    `distractors`, `distractor_dashes`: short curves, and how long they are.
    `target_ink`, `distractor_ink`, `disc_ink`: brightness, before the brightest is set to 255.
    """

    side: int
    border: int
    length: int
    thickness: float
    margin: int
    apart: int
    radius: float
    continuity: float
    dashes: int
    distractors: int
    distractor_dashes: int
    target_ink: float
    distractor_ink: float
    disc_ink: float = 1.0

    @property
    def reach(self) -> int:
        """From where a dash turns to its end."""
        return self.length + self.margin

    @property
    def half(self) -> int:
        """Of a stamp's side, without its middle."""
        return self.reach + 2 * self.margin + 2

    @cached_property
    def directions(self) -> Int[np.ndarray, "k 2"]:
        """To the pixels of a circle."""
        steps = np.arange(-self.reach - 1, self.reach + 2)
        points = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
        square = (points**2).sum(1)
        return points[(square > (self.reach - 0.5) ** 2) & (square < (self.reach + 0.5) ** 2)]

    @cached_property
    def units(self) -> Float[np.ndarray, "k 2"]:
        """The directions, of length one."""
        return self.directions / np.sqrt((self.directions**2).sum(1, keepdims=True))

    @cached_property
    def advance(self) -> Int[np.ndarray, "k 2"]:
        """From where a dash turns to where the next one does."""
        return rounded(self.units * (self.length + 2 * self.margin))

    @cached_property
    def turns(self) -> Float[np.ndarray, "k k"]:
        """How often each direction follows each other one, before they are weighed against what is free."""
        angle = np.arccos(np.clip(self.units @ self.units.T, -1, 1))
        chance = np.cos(np.minimum(self.continuity * angle, np.pi / 2)) ** 2
        return np.round(chance * 2**16) / 2**16  # so that machines that round cosines otherwise agree

    @cached_property
    def stamps(self) -> "Stamps":
        return Stamps(self)


class Stamps:
    """Each dash, drawn once: its ink, and what it keeps others from, around the pixel where it turns."""

    def __init__(self, style: Style) -> None:
        side = 2 * style.half + 1
        pixels = (np.indices((side, side)) - style.half).reshape(2, -1).T
        self.ink = np.stack([dash(style, unit, pixels) for unit in style.units])
        distance = np.stack([from_dash(style, unit, pixels) for unit in style.units])
        clear = style.thickness / 2 + style.margin
        self.near = NEAR * (distance <= clear).astype(np.uint8)
        self.taken = self.near + FAR * (distance <= clear + style.margin).astype(np.uint8)
        self.disc = np.zeros(len(pixels))
        for place, weight in subpixels():
            self.disc += weight * (((pixels + place) ** 2).sum(1) <= style.radius**2)
        self.pixels = pixels


def subpixels() -> list[tuple[tuple[float, float], float]]:
    """Points around a pixel's middle, and their weights: a tent over it and half of its neighbours."""
    places = [(2 * place + 1) / (2 * SUBPIXELS) - 1 for place in range(2 * SUBPIXELS)]
    return [((y, x), (1 - abs(y)) * (1 - abs(x)) / SUBPIXELS**2) for y in places for x in places]


def dash(style: Style, unit: Float[np.ndarray, " 2"], pixels: Int[np.ndarray, "p 2"]) -> np.ndarray:
    """How much of each pixel a dash covers."""
    covered = np.zeros(len(pixels))
    for place, weight in subpixels():
        along, across = along_and_across(unit, pixels + place)
        beyond = style.reach - style.length
        inside = (along >= beyond) & (along <= style.reach) & (2 * np.abs(across) <= style.thickness)
        covered += weight * inside
    return covered


def from_dash(style: Style, unit: Float[np.ndarray, " 2"], pixels: Int[np.ndarray, "p 2"]) -> np.ndarray:
    """How far each pixel is from the middle line of a dash."""
    along, across = along_and_across(unit, pixels)
    outside = along - np.clip(along, style.margin, style.reach)
    return np.sqrt(across**2 + outside**2)


def along_and_across(unit: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = points[:, 0], points[:, 1]
    return y * unit[0] + x * unit[1], x * unit[0] - y * unit[1]


def rounded(points: Float[np.ndarray, "k 2"]) -> Int[np.ndarray, "k 2"]:
    return np.floor(points + 0.5).astype(np.int64)


BEGIN, LONG, SHORT, DONE = range(4)  # what a picture waits for


def pictures(style: Style, bits: RandomBits, joined: Bool[np.ndarray, " n"]) -> UInt8[np.ndarray, "n s s"]:
    """A picture each, whose discs lie on one curve where `joined` says so.

    Raises `DataError` where curves of that style do not fit into the picture.
    """
    block = Block(style, bits, count=len(joined))
    while (block.phase != DONE).any():
        block.begin(np.flatnonzero(block.phase == BEGIN))
        block.grow(np.flatnonzero(block.phase == LONG))
        block.distract(np.flatnonzero(block.phase == SHORT))
    return block.finish(joined)


class Block:
    """Pictures that grow side by side. Places are of a canvas with a margin on all sides, row by row."""

    def __init__(self, style: Style, bits: RandomBits, *, count: int) -> None:
        self.style, self.bits, self.stamps = style, bits, style.stamps
        self.pad = style.half + style.reach + 2 * style.margin
        self.width = style.side + 2 * self.pad
        size = self.width**2
        self.ink = np.zeros((count, size), np.float32)
        self.taken = np.zeros((count, size), np.uint8)  # NEAR, FAR or both
        self.ink_pixels, self.taken_pixels = self.ink.reshape(-1), self.taken.reshape(-1)  # views
        self.phase = np.full(count, BEGIN)
        self.beginnings = np.zeros(count, np.int64)
        self.grown = np.zeros(count, np.int64)  # dashes after the first, of both long curves
        self.backs = np.zeros(count, np.int64)
        self.turn = np.zeros((count, 2, style.dashes), np.int64)  # where dashes turn, by curve
        self.direction = np.zeros((count, 2, style.dashes), np.int64)
        self.shorts = np.zeros(count, np.int64)  # distractors that are done
        self.beyond = self.outside(style.border)
        self.blank = NEAR * self.beyond.astype(np.uint8) + FAR * self.outside(style.border + style.margin)
        self.patch = self.flat(self.stamps.pixels)
        self.heads = self.flat(style.directions)
        self.advance = self.flat(style.advance)
        self.tails = self.flat(rounded(style.units * style.margin))
        self.apart = self.flat(rounded(style.units * style.apart))

    def flat(self, points: Int[np.ndarray, "k 2"]) -> Int[np.ndarray, " k"]:
        """Steps on the canvas."""
        return points[:, 0] * self.width + points[:, 1]

    def outside(self, border: int) -> Bool[np.ndarray, " p"]:
        """The canvas beyond the picture, and the picture's border."""
        canvas = np.ones((self.width, self.width), bool)
        edge = self.pad + border
        canvas[edge:-edge, edge:-edge] = False
        return canvas.ravel()

    def anywhere(self, shape: tuple[int, ...], *, border: int) -> Int[np.ndarray, "..."]:
        """Random pixels of the picture."""
        room = self.style.side - 2 * border
        y, x = (self.pad + border + self.bits.below(room, *shape) for _ in range(2))
        return y * self.width + x

    def begin(self, chosen: Int[np.ndarray, " c"]) -> None:
        """The first dashes of the two long curves, on an empty picture."""
        if not len(chosen):
            return
        style = self.style
        self.beginnings[chosen] += 1
        if (self.beginnings[chosen] > HOPELESS).any():
            raise DataError(
                f"no place found for two curves of {style.dashes} dashes in a picture of {style.side} by "
                f"{style.side} pixels: ask for a shorter contour or a larger side"
            )
        kinds, count = len(style.directions), len(chosen)
        first = np.empty((count, 2), np.int64)
        first[:, 0] = self.anywhere((count,), border=min(2 * style.apart, style.side // 2 - 1))
        first[:, 1] = first[:, 0] + self.apart[self.bits.below(kinds, count)]
        self.direction[chosen, :, 0] = self.bits.below(kinds, count, 2)
        self.turn[chosen, :, 0] = first - self.tails[self.direction[chosen, :, 0]]
        self.grown[chosen], self.backs[chosen], self.shorts[chosen], self.phase[chosen] = 0, 0, 0, LONG
        self.settle(chosen)

    def settle(self, chosen: Int[np.ndarray, " c"]) -> None:
        """What is occupied, anew: by all dashes of the long curves but the last of each."""
        self.taken[chosen] = self.blank
        for curve in range(2):
            dashes = (self.grown[chosen] + 1 - curve) // 2
            for place in range(int(dashes.max(initial=0))):
                these = chosen[dashes > place]
                self.occupy(these, self.turn[these, curve, place], self.direction[these, curve, place])

    def grow(self, chosen: Int[np.ndarray, " c"]) -> None:
        """One dash more of a long curve, in turns."""
        if not len(chosen):
            return
        curve, last = self.grown[chosen] % 2, self.grown[chosen] // 2
        turn, direction = self.turn[chosen, curve, last], self.direction[chosen, curve, last]
        found, later, new = self.extend(chosen, turn, direction)
        self.go_back(chosen[~found])
        chosen, curve, last = chosen[found], curve[found], last[found]
        self.occupy(chosen, turn[found], direction[found])
        self.turn[chosen, curve, last + 1] = later[found]
        self.direction[chosen, curve, last + 1] = new[found]
        self.grown[chosen] += 1
        self.complete(chosen[self.grown[chosen] == 2 * (self.style.dashes - 1)])

    def go_back(self, chosen: Int[np.ndarray, " c"]) -> None:
        """Take dashes back, or the picture."""
        self.backs[chosen] += 1
        self.phase[chosen[self.backs[chosen] > BACKS]] = BEGIN
        self.grown[chosen] = np.maximum(self.grown[chosen] - BACK, 0)
        self.settle(chosen)

    def complete(self, chosen: Int[np.ndarray, " c"]) -> None:
        """Draw the long curves."""
        for curve in range(2):
            self.occupy(chosen, self.turn[chosen, curve, -1], self.direction[chosen, curve, -1])
            for place in range(self.style.dashes):
                turn, direction = self.turn[chosen, curve, place], self.direction[chosen, curve, place]
                self.draw(chosen, turn, direction, self.style.target_ink)
        self.phase[chosen] = SHORT if self.style.distractors else DONE

    def distract(self, chosen: Int[np.ndarray, " c"]) -> None:
        """A whole distractor, or none where none finds a place."""
        left = chosen
        for _ in range(RETRIES):
            before = self.ink[left], self.taken[left]
            drawn = self.short(left)
            for canvas, old in zip((self.ink, self.taken), before, strict=True):
                canvas[left[~drawn]] = old[~drawn]
            left = left[~drawn]
            if not len(left):
                break
        self.shorts[chosen] += 1
        self.phase[chosen[self.shorts[chosen] == self.style.distractors]] = DONE

    def short(self, chosen: Int[np.ndarray, " c"]) -> Bool[np.ndarray, " c"]:
        """Where a distractor was drawn; where not, what there is of it stands."""
        count = len(chosen)
        direction = self.bits.below(len(self.style.directions), count)
        places = self.anywhere((PLACES, count), border=self.style.border)
        drawn = np.zeros(count, bool)
        turn = places[0].copy()
        for place in places:
            left = np.flatnonzero(~drawn)
            fits = left[~self.collides(chosen[left], place[left], direction[left])]
            turn[fits], drawn[fits] = place[fits], True
        self.draw(chosen, turn, direction, self.style.distractor_ink)
        for _ in range(self.style.distractor_dashes - 1):
            found, later, new = self.extend(chosen, turn, direction)
            drawn &= found
            self.occupy(chosen, turn, direction)
            self.draw(chosen, later, new, self.style.distractor_ink)
            turn, direction = later, new
        self.occupy(chosen, turn, direction)
        return drawn

    def extend(
        self, chosen: Int[np.ndarray, " c"], turn: Int[np.ndarray, " c"], direction: Int[np.ndarray, " c"]
    ) -> tuple[Bool[np.ndarray, " c"], Int[np.ndarray, " c"], Int[np.ndarray, " c"]]:
        """Where there is a next dash, where it turns, and its direction."""
        later = turn + self.advance[direction]
        inside = ~self.beyond[later]
        later = np.where(inside, later, turn)
        free = self.taken[chosen[:, None], later[:, None] + self.heads] & FAR == 0
        chance = np.cumsum(self.style.turns[direction] * free, 1)
        possible = inside & (chance[:, -1] > 0)
        found = np.zeros(len(chosen), bool)
        new = np.zeros(len(chosen), np.int64)
        for _ in range(TRIES):
            drawn = (chance <= self.bits.uniform(len(chosen), 1) * chance[:, -1:]).sum(1)
            drawn = np.minimum(drawn, len(self.heads) - 1)
            fits = possible & ~found & ~self.collides(chosen, later, drawn)
            new[fits] = drawn[fits]
            found |= fits
        return found, later, new

    def at(self, chosen: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """The pixels around where dashes turn, on all canvases one behind the other."""
        return (chosen * self.width**2 + turn)[:, None] + self.patch

    def collides(self, chosen: np.ndarray, turn: np.ndarray, direction: np.ndarray) -> np.ndarray:
        return np.any(self.taken_pixels[self.at(chosen, turn)] & self.stamps.near[direction], axis=1)

    def occupy(self, chosen: np.ndarray, turn: np.ndarray, direction: np.ndarray) -> None:
        """Let no other dash come near this one."""
        self.taken_pixels[self.at(chosen, turn)] |= self.stamps.taken[direction]

    def draw(self, chosen: np.ndarray, turn: np.ndarray, direction: np.ndarray, ink: float) -> None:
        place = self.at(chosen, turn)
        self.ink_pixels[place] = np.maximum(self.ink_pixels[place], ink * self.stamps.ink[direction])

    def finish(self, joined: Bool[np.ndarray, " n"]) -> UInt8[np.ndarray, "n s s"]:
        """Discs at the start of a curve and at the end of it or of the other; brightness in bytes."""
        every = np.arange(len(joined))
        curve = self.bits.below(2, len(joined))
        start = self.turn[:, :, 0] + self.tails[self.direction[:, :, 0]]
        end = self.turn[:, :, -1] + self.heads[self.direction[:, :, -1]]
        for spot in (start[every, curve], end[every, np.where(joined, curve, 1 - curve)]):
            place = self.at(every, spot)
            self.ink_pixels[place] = np.maximum(
                self.ink_pixels[place], self.style.disc_ink * self.stamps.disc
            )
        canvas = self.ink.reshape(-1, self.width, self.width)[:, self.pad : -self.pad, self.pad : -self.pad]
        brightest = canvas.max((1, 2), keepdims=True)
        return np.floor(canvas * (255 / brightest) + 0.5).astype(np.uint8)
