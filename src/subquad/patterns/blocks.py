"""Which blocks of queries and keys hold pairs of a pattern, from its numbers and never pair by pair.

    may_hold   may a block hold a pair: all that do, and maybe others
    holds_all  does a block hold nothing but pairs: not all that do, but only such

Blocks are of `BLOCK` queries and keys. A pattern that is not known here may hold a pair anywhere. Where a
pattern does not depend on a sequence's end, its blocks are kept, and only those of padding are taken out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.shared.reuse import once_a_pass, once_a_process
from subquad.patterns.atoms import (
    Columns,
    Dilated,
    Fixed,
    Global,
    Local,
    Random,
    Ring,
    Rows,
    Strided,
    Summaries,
)
from subquad.patterns.draws import draws
from subquad.patterns.pattern import Blocks, Causal, Intersection, Pattern, PerHead, Union

BLOCK = 128  # FlexAttention's own default

Grid = Bool[Tensor, "#b 1 blocks blocks"]
Grids = Bool[Tensor, "#b #h blocks blocks"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """The queries and keys of all blocks, in units of `size` tokens, from first to last."""

    length: int  # in tokens
    size: int
    tokens: Int[Tensor, " b"]  # real ones of each row
    block: int
    larger: dict[int, "Spans"] = field(default_factory=dict, init=False)

    @cached_property
    def places(self) -> tuple[Int[Tensor, " blocks"], Int[Tensor, " blocks"]]:
        first = torch.arange(0, self.length, self.block, device=self.tokens.device)
        return first // self.size, (first + self.block - 1).clamp(max=self.length - 1) // self.size

    @cached_property
    def queries(self) -> tuple[Int[Tensor, "blocks 1"], Int[Tensor, "blocks 1"]]:
        first, last = self.places
        return first[:, None], last[:, None]

    @property
    def keys(self) -> tuple[Int[Tensor, " blocks"], Int[Tensor, " blocks"]]:
        return self.places

    @cached_property
    def n(self) -> Int[Tensor, "b 1 1 1"]:
        """Units of each row."""
        return ((self.tokens + self.size - 1) // self.size)[:, None, None, None]

    @cached_property
    def distance(self) -> tuple[Int[Tensor, "blocks blocks"], Int[Tensor, "blocks blocks"]]:
        """The least and the greatest |i - j|."""
        (a, b), (c, d) = self.queries, self.keys
        return torch.maximum(a - d, c - b).clamp(min=0), torch.maximum(b - c, d - a)

    @cached_property
    def everywhere(self) -> Bool[Tensor, "blocks blocks"]:
        (a, _), (c, _) = self.queries, self.keys
        return (a >= 0) & (c >= 0)

    def multiple(self, stride: int) -> Bool[Tensor, "blocks blocks"]:
        """Whether some i - j is a multiple of `stride`; they take all values from a - d to b - c."""
        (a, b), (c, d) = self.queries, self.keys
        return (b - c) - (b - c) % stride >= a - d

    def by(self, size: int) -> "Spans":
        """The same blocks in units of `size` of these."""
        if size not in self.larger:
            self.larger[size] = replace(self, size=self.size * size)
        return self.larger[size]


def block_lists(
    pattern: Pattern,
    length: int,
    n: Int[Tensor, " b"],
    valid: Bool[Tensor, "b s"] | None = None,
    *,
    block: int = BLOCK,
) -> tuple[Bool[Tensor, "b h blocks blocks"], Bool[Tensor, "b h blocks blocks"]]:
    """The blocks to be asked pair by pair, and those that hold nothing but pairs, in rows of n real tokens.

    Blocks without a real query and key are neither. Real are the valid tokens, or else the first; those of a
    block are of two blocks of positions at most.
    """
    first = torch.arange(0, length, block, device=n.device)
    if depends_on_end(pattern):
        some, every = grids(pattern, length, n, block)
    else:
        some, every = known_grids(pattern, len(first) * block, n.device, block)
    if valid is None:
        before, end = (place.clamp(max=n[:, None]) for place in (first, first + block))
    else:
        end = valid.cumsum(1).index_select(1, (first + block).clamp(max=length) - 1)
        before = F.pad(end, (1, -1))
        of = [(place.clamp(0, length - 1)) // block for place in (before, end - 1)]
        some, every = across(some, of, torch.logical_or), across(every, of, torch.logical_and)
    real, filled = end > before, end - before == block
    real, filled = (x[:, None, :, None] & x[:, None, None] for x in (real, filled))
    full = every & filled & some
    return some & real & ~full, full


def across(grid: Grids, of: Sequence[Int[Tensor, "b blocks"]], combine: Callable[..., Tensor]) -> Grids:
    """For each block what holds of the blocks of positions that its first and its last token are of."""
    b, h, count, _ = torch.broadcast_shapes(grid.shape, (len(of[0]), 1, 1, 1))
    for dim in (2, 3):
        places = (x[:, None].unsqueeze(5 - dim).expand(b, h, count, count) for x in of)
        grid = combine(*(grid.expand(b, h, count, count).gather(dim, x) for x in places))
    return grid


@once_a_process
def known_grids(pattern: Pattern, length: int, device: torch.device, block: int) -> tuple[Grids, Grids]:
    return grids(pattern, length, torch.full((1,), length, device=device), block)


def grids(pattern: Pattern, length: int, n: Int[Tensor, " b"], block: int) -> tuple[Grids, Grids]:
    """The blocks that may hold a pair, and those that hold nothing else, whatever of them is padding."""
    spans = Spans(length=length, size=1, tokens=n, block=block)
    each = pattern.patterns if isinstance(pattern, PerHead) else (pattern,)
    some, every = ([ask(one, spans) for one in each] for ask in (may_hold, holds_all))
    return torch.cat(some, 1), torch.cat(every, 1)


def depends_on_end(pattern: Pattern) -> bool:
    return pattern.needs_end or not all(drawing.causal for drawing in drawings(pattern))


def may_hold(pattern: Pattern, s: Spans, *, causal: bool = False) -> Grid:
    """`causal` says that row i ends with itself."""
    (_, b), (c, d) = s.queries, s.keys
    nearest, farthest = s.distance
    match pattern:
        case Union(left, right):
            return may_hold(left, s, causal=causal) | may_hold(right, s, causal=causal)
        case Intersection(left, right):
            if pattern.without_causal is not None:
                return may_hold(pattern.without_causal, s, causal=True) & (c <= b)
            return may_hold(left, s, causal=causal) & may_hold(right, s, causal=causal)
        case Causal():
            found = c <= b
        case Local(width):
            found = nearest <= width
        case Dilated(width, dilation):
            found = (nearest <= width * dilation) & s.multiple(dilation)
        case Strided(stride):
            found = s.multiple(stride)
        case Summaries(stride, columns, before):
            first = stride - before - columns
            here = c % stride
            wait = torch.where(here < stride - before, (first - here).clamp(min=0), stride - here + first)
            found = (c + wait <= d) & s.everywhere
        case Columns(count, last):
            found = ((c < count) | (d >= s.n - last) if last else c < count) & s.everywhere
        case Rows(count, last):
            found = (
                (s.queries[0] < count) | (b >= s.n - last) if last else s.queries[0] < count
            ) & s.everywhere
        case Fixed() | Global():
            return may_hold(pattern.union, s, causal=causal)
        case Ring(width, start):
            near = (nearest <= width) | (s.n - start - farthest <= width)
            found = near & (b >= start) & (d >= start)
        case Blocks(inner, size):
            return may_hold(inner, s.by(size), causal=causal)
        case Random():
            return drawn_blocks(pattern, s, causal=causal)
        case _:
            found = s.everywhere
    return over_rows(found, s)


def holds_all(pattern: Pattern, s: Spans, *, causal: bool = False) -> Grid:
    (a, b), (c, d) = s.queries, s.keys
    match pattern:
        case Union(left, right):
            return holds_all(left, s, causal=causal) | holds_all(right, s, causal=causal)
        case Intersection(left, right):
            if pattern.without_causal is not None:
                return holds_all(pattern.without_causal, s, causal=True) & (d <= a)
            return holds_all(left, s, causal=causal) & holds_all(right, s, causal=causal)
        case Causal():
            found = d <= a
        case Local(width):
            found = s.distance[1] <= width
        case Summaries(stride, columns, before):
            inside = (c % stride >= stride - before - columns) & (d % stride < stride - before)
            found = inside & (c // stride == d // stride) & s.everywhere
        case Columns(count, last):
            found = ((d < count) | (c >= s.n - last) if last else d < count) & s.everywhere
        case Rows(count, last):
            found = ((b < count) | (a >= s.n - last) if last else b < count) & s.everywhere
        case Fixed() | Global():
            return holds_all(pattern.union, s, causal=causal)
        case Blocks(inner, size):
            return holds_all(inner, s.by(size), causal=causal)
        case _:
            found = ~s.everywhere
    return over_rows(found, s)


def over_rows(found: Tensor, s: Spans) -> Grid:
    return found.expand(len(s.tokens), 1, -1, -1)


class Drawing(NamedTuple):
    """Draws of a pattern, in units of tokens, where rows end with themselves or not."""

    pattern: Random
    size: int = 1
    causal: bool = False


def drawings(pattern: Pattern, size: int = 1, causal: bool = False) -> list[Drawing]:
    """All that a pattern draws."""
    if isinstance(pattern, PerHead):
        found = [x for one in pattern.patterns for x in drawings(one, size, causal)]
    elif isinstance(pattern, Intersection) and pattern.without_causal is not None:
        found = drawings(pattern.without_causal, size, True)
    elif isinstance(pattern, (Union, Intersection)):
        found = drawings(pattern.left, size, causal) + drawings(pattern.right, size, causal)
    elif isinstance(pattern, Blocks):
        found = drawings(pattern.pattern, size * pattern.size, causal)
    else:
        found = [Drawing(pattern, size, causal)] if isinstance(pattern, Random) else []
    return list(dict.fromkeys(found))


def drawn_blocks(pattern: Random, s: Spans, *, causal: bool) -> Grid:
    """Where a row's draws fall; a unit may reach into several blocks."""
    keys = draw_table(pattern, s.length, s.tokens, s.size, causal).long()
    i = torch.arange(keys.shape[1], device=keys.device)[None, :, None]
    size, blocks = s.size, -(-s.length // s.block)
    reach = 1 if s.block % size == 0 else (size - 1) // s.block + 2
    found = torch.zeros(len(keys), blocks * blocks + 1, dtype=torch.bool, device=keys.device)
    for down in range(reach):
        for right in range(reach):
            row, column = i * size // s.block + down, keys * size // s.block + right
            inside = (row <= (i * size + size - 1) // s.block) & (
                column <= (keys * size + size - 1) // s.block
            )
            inside = inside & (keys >= 0) & (row < blocks) & (column < blocks)
            found.scatter_(1, torch.where(inside, row * blocks + column, blocks * blocks).flatten(1), True)
    return over_rows(found[:, :-1].reshape(-1, 1, blocks, blocks), s)


@once_a_pass
def draw_table(
    pattern: Random, length: int, n: Int[Tensor, " b"], size: int, causal: bool
) -> Int[Tensor, "b rows draws"]:
    """The keys that each row draws among units of `size` tokens; below zero there is none."""
    i = torch.arange(-(-length // size), device=n.device)[None]
    units = ((n + size - 1) // size)[:, None]
    i, among, _ = torch.broadcast_tensors(i, i + 1 if causal else units, units)
    return draws(i, among=among, count=pattern.count, seed=pattern.seed).to(torch.int32)
