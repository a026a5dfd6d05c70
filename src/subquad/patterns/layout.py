"""The parts of a pattern as tiles of tokens, for a whole sequence: what `ops/tile_attention` computes on.

Parts that take the queries in the same order share their tiles, whose keys then stand side by side: one
softmax instead of several that must be merged. A plain window takes no tiles: `ops/window_attention` does it.
"""

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.shared.reuse import once_a_pass, once_a_process
from subquad.ops.tile_attention import Tiling
from subquad.patterns.blocks import depends_on_end
from subquad.patterns.parts import Banded, Part, Picked, Scattered
from subquad.patterns.pattern import Pattern

WIDTH = 64  # queries of a tile where no part says how many
SMALLEST = 16  # and where parts may say: fewer make slow products
Length = Int[Tensor, " #b"]


class Layout(NamedTuple):
    """How a sequence runs: a sliding window, by its tokens to the left and right, and tiles."""

    band: tuple[int, int] | None
    tilings: list[Tiling]


def layout(pattern: Pattern, length: int, n: Int[Tensor, " b"] | None, device: torch.device) -> Layout:
    """Tiles for sequences of `length` of which the first n tokens are real; None: all.

    Pairs in padding are left out only where the pattern depends on the end.
    """
    if n is None or not depends_on_end(pattern):
        return whole(pattern, length, device)
    return lay_out(pattern, length, n)


@once_a_process
def whole(pattern: Pattern, length: int, device: torch.device) -> Layout:
    return lay_out(pattern, length, torch.full((1,), length, device=device))


@once_a_pass
def lay_out(pattern: Pattern, length: int, n: Length) -> Layout:
    parts = sorted(pattern.parts(length=length, n=n, causal=False, unit=1), key=cost)
    band = next((x for x in parts if isinstance(x, Banded) and x.window and x.stride == 1), None)
    if band is not None:
        parts = [band, *(x for x in parts if x is not band)]
    at = torch.arange(1, length + 1, device=n.device)[None, None, :, None]
    alone = [tiling(parts, index, at, n) for index in range(band is not None, len(parts))]
    if band is None or band.window is None:
        return Layout(None, merge_ordered(alone, length))
    left, right = (min(x, length - 1) for x in band.window)
    return Layout((left, right), merge_ordered(alone, length))


def cost(part: Part) -> int:
    """Of asking for its pairs: first what is cheap, for each later part asks all before it."""
    return isinstance(part, Scattered)


def tiling(parts: Sequence[Part], index: int, at: Int[Tensor, "1 1 s 1"], n: Length) -> Tiling:
    """One part, and the pairs that no part before it has."""
    part, grain = parts[index], gcd(*(x.grain for x in parts[: index + 1]))
    row, key = part.queries(at)[:, 0, ..., 0] - 1, part.keys(at)[:, 0, ..., 0] - 1
    i, j, count = row[:, :, ::grain, None], key[:, :, None, ::grain], n[:, None, None, None]
    seen = (i >= 0) & (j >= 0) & (j < count) & part.covers(i, j, count)
    for earlier in parts[:index]:
        seen = seen & ~earlier.covers(i, j, count)
    ordered, unit = isinstance(part, Scattered), part.unit
    if isinstance(part, Picked):
        ordered = part.queries_at is None
    elif isinstance(part, Banded) and part.stride == 1:
        ordered, unit = True, part.unit * part.block
    keys = key[:, :, ::unit].div(unit, rounding_mode="floor")
    return Tiling(None if ordered else row, keys, seen, row.shape[2], unit)


def merge_ordered(alone: list[Tiling], length: int) -> list[Tiling]:
    """First those that take all tokens in order, with the keys of the same queries side by side."""
    ordered = [x for x in alone if x.queries is None]
    widths = [x.width for x in ordered if x.keys.shape[1] > 1 and x.width >= SMALLEST]
    width = max(widths) if widths else WIDTH
    ordered = [cut(x, width, length) if x.keys.shape[1] == 1 else x for x in ordered]
    found = [
        concat_keys([x for x in ordered if x.width == own]) for own in dict.fromkeys(x.width for x in ordered)
    ]
    return found + [x for x in alone if x.queries is not None]


def cut(x: Tiling, width: int, length: int) -> Tiling:
    """One tile of all queries as several."""
    count = -(-length // width)
    seen = finer(x.seen, 2, x.width, gcd(width, x.width // x.seen.shape[2]))
    each = width * seen.shape[2] // x.width
    behind = max(0, each * count - seen.shape[2])
    seen = F.pad(seen.byte(), (0, 0, 0, behind))[:, 0, : each * count].bool()  # inductor pads no booleans
    keys = x.keys.expand(-1, count, -1)
    return x._replace(keys=keys, seen=seen.unflatten(1, (count, each)), width=width)


def concat_keys(some: list[Tiling]) -> Tiling:
    """Tilings of the same queries as one."""
    if len(some) == 1:
        return some[0]
    width, unit = some[0].width, gcd(*(x.unit for x in some))
    by_query = gcd(*(width // x.seen.shape[2] for x in some))
    by_key = gcd(*(x.keys.shape[2] * x.unit // x.seen.shape[3] for x in some))
    batch = max(len(y) for x in some for y in (x.keys, x.seen))
    keys, seen = [], []
    for x in some:
        within = torch.arange(x.unit // unit, device=x.keys.device)
        keys.append((x.keys[..., None] * len(within) + within).flatten(2).expand(batch, -1, -1))
        pairs = finer(finer(x.seen, 2, width, by_query), 3, x.keys.shape[2] * x.unit, by_key)
        seen.append(pairs.expand(batch, -1, -1, -1))
    return Tiling(None, torch.cat(keys, 2), torch.cat([x.byte() for x in seen], 3).bool(), width, unit)


def finer(
    seen: Bool[Tensor, "b tiles _ _"], dim: int, tokens: int, grain: int
) -> Bool[Tensor, "b tiles _ _"]:
    """The same pairs, with one entry for each `grain` of the tokens along `dim`."""
    return seen.repeat_interleave(tokens // seen.shape[dim] // grain, dim)
