"""A pattern drawn in text: which keys each query sees, queries from top to bottom, keys from left to right.

Where there is room every pair is drawn, in half blocks or, smaller, in braille dots. Where there is none,
shades tell how much of a cell's pairs are covered. Their steps are wide apart, since patterns are sparse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.patterns.pattern import Pattern, PerHead

PAIRS = 2**24  # a drawing has at most: 4,096 tokens of one head
HALVES, HALF = " ▀▄█", [[1], [2]]
BRAILLE, DOT = " " + "".join(map(chr, range(0x2801, 0x2900))), [[1, 8], [2, 16], [4, 32], [64, 128]]
SHADES = " ░▒▓█"
LEVELS = {1: "under 1/64", 2: "under 1/8", 3: "more", 4: "all"}  # of a cell's pairs; 0 is none
GAP = "  "  # between two heads


@dataclass(frozen=True, eq=False, kw_only=True)
class Panel:
    """What one head sees, or every head alike."""

    title: str  # "head 0: Local(4)", or nothing where all heads are alike
    mask: Bool[Tensor, "n n"]

    @property
    def pairs(self) -> int:
        return int(self.mask.sum())

    def counts(self) -> dict[str, Any]:
        """Pairs in all, as a share of n^2, and by query."""
        seen = self.mask.sum(1)
        mean = self.pairs / len(seen)
        by_query = {"least": int(seen.min()), "mean": mean, "most": int(seen.max())}
        return {"pairs": self.pairs, "density": mean / len(seen), "keys_per_query": by_query}

    def sentence(self) -> str:
        """The counts in words."""
        n, counts = len(self.mask), self.counts()
        least, mean, most = counts["keys_per_query"].values()
        keys = f"{least:,} to {most:,} keys, mean {mean:,.1f}" if least < most else f"{most:,} keys"
        density = f"{100 * counts['density']:.3g} %"
        return f"{self.pairs:,} of {n:,}² = {n * n:,} pairs, density {density}; a query sees {keys}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawing:
    """A pattern at one length, to be drawn as text or, by `subquad.patterns.svg`, as a picture."""

    expression: str
    length: int
    panels: Sequence[Panel]  # one, or one for each head

    @classmethod
    def of(cls, pattern: Pattern, length: int) -> "Drawing":
        """Raises `ValueError` where length and heads are too many to draw."""
        longest = int((PAIRS / (pattern.heads or 1)) ** 0.5)
        if not 1 <= length <= longest:
            raise ValueError(
                f"a drawing of this pattern takes a length from 1 to {longest:,}, not {length:,}"
            )
        if isinstance(pattern, PerHead):
            heads = {f"head {head}: {one!r}": one for head, one in enumerate(pattern.patterns)}
        else:
            heads = {"": pattern}
        panels = [Panel(title=title, mask=one.mask(length)) for title, one in heads.items()]
        return cls(expression=repr(pattern), length=length, panels=panels)

    def text(self, *, columns: int, lines: int) -> str:
        """The drawing and its counts; drawings are at most `columns` wide and about `lines` high."""
        abreast = min(2, len(self.panels))
        room = {"columns": max(4, columns // abreast - 4), "lines": max(2, lines - 5)}
        framed = [_framed(panel, drawn(panel.mask, **room)) for panel in self.panels]
        abreast = max(1, (columns + len(GAP)) // (len(framed[0][0]) + len(GAP)))
        parts = [self.expression, "queries ↓ keys →"]
        for first in range(0, len(framed), abreast):
            parts += [GAP.join(row).rstrip() for row in zip(*framed[first : first + abreast], strict=True)]
        if any(set("░▒▓") & set(line) for block in framed for line in block):
            key = ", ".join(f"{SHADES[level]} {words}" for level, words in LEVELS.items())
            parts.append(f"of a cell's pairs: {key}")
        parts += [f"{panel.title}: {panel.sentence()}".removeprefix(": ") for panel in self.panels]
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        heads = [panel.counts() for panel in self.panels]
        pairs = sum(panel.pairs for panel in self.panels)
        return {
            "expression": self.expression,
            "length": self.length,
            "pairs": pairs,
            "density": pairs / (len(heads) * self.length**2),
            "heads": heads,
        }


def drawn(mask: Bool[Tensor, "n n"], *, columns: int, lines: int) -> list[str]:
    """The mask in at most so many columns and lines."""
    n = len(mask)
    for glyphs, weights in ((HALVES, HALF), (BRAILLE, DOT)):
        weigh = torch.tensor(weights)
        high, wide = weigh.shape
        if n <= columns * wide and n <= lines * high:
            dots = F.pad(mask, (0, -n % wide, 0, -n % high)).unflatten(1, (-1, wide)).unflatten(0, (-1, high))
            return _written((dots * weigh[:, None]).sum((1, 3)), glyphs)
    rows = min(lines, columns // 2)  # a character is twice as high as it is wide
    return _written(levels(coverage(mask, rows=rows, columns=2 * rows)), SHADES)


def coverage(mask: Bool[Tensor, "n n"], *, rows: int, columns: int) -> Float[Tensor, "{rows} {columns}"]:
    """How much of each cell is covered, from 0 to 1, when the mask is cut into so many rows and columns."""
    cells = mask.double()
    for pieces in (rows, columns):  # the mean over queries, then over keys, of each piece
        cells = torch.stack([piece.mean(0) for piece in cells.tensor_split(pieces)]).T
    return cells


def levels(covered: Float[Tensor, "r c"]) -> Int[Tensor, "r c"]:
    """The level of each cell, as `LEVELS` names them; 0 where nothing is covered, and only there."""
    return sum((covered >= step).long() for step in (1 / 64, 1 / 8, 1)) + (covered > 0).long()


def _written(cells: Int[Tensor, "r c"], glyphs: str) -> list[str]:
    return ["".join(glyphs[cell] for cell in row) for row in cells.tolist()]


def _framed(panel: Panel, rows: list[str]) -> list[str]:
    """The drawing in a frame, below its title if it has one, all lines equally long."""
    width = len(rows[0])
    title = [panel.title[: max(width + 2, len("head 00"))]] if panel.title else []
    lines = [*title, f"┌{'─' * width}┐", *(f"│{row}│" for row in rows), f"└{'─' * width}┘"]
    widest = max(map(len, lines))
    return [f"{line:<{widest}}" for line in lines]
