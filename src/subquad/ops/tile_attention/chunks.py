"""Tiles a few at a time: as many tiles of as many heads as fit in cache together.

Chunks reuse one buffer: new memory, page by page, costs as much as the products.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.tile_attention import Tiling

HIGHEST = 80.0  # a score that takes its query's sum out of range as surely as a higher one
MAX_ELEMENTS = 2**20  # that the tiles taken at once may hold: more leaves the cache


@dataclass(eq=False)
class Buffers:
    """Memory that each chunk takes where the last one had it, by what it is for."""

    like: Tensor
    taken: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, *shape: int) -> Tensor:
        numbers = math.prod(shape)
        if name not in self.taken or self.taken[name].numel() < numbers:
            self.taken[name] = self.like.new_empty(numbers)
        return self.taken[name][:numbers].view(shape)


def in_units(x: Tensor, unit: int) -> Tensor:
    """`x` with zeros behind it, up to a whole number of units."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % unit)) if x.shape[2] % unit else x


class RowTiles(NamedTuple):
    """Tiles of heads that share them: of one sequence where sequences differ, else of several."""

    tensors: tuple[Tensor, ...]  # (heads tokens _) each, and q, k, v are the first; k and v are whole units
    queries: Tensor | None
    keys: Tensor
    seen: Tensor
    width: int
    unit: int
    length: Tensor | None
    buffers: Buffers

    def chunks(self) -> Iterator["Chunk"]:
        """A few tiles of a few heads at once; the last tile may have fewer queries."""
        q, _, v, *_ = self.tensors
        (count, c), t = self.keys.shape, q.shape[1]
        each = self.width * c * self.unit + (self.width + c * self.unit) * (q.shape[2] + v.shape[2])
        heads = max(1, MAX_ELEMENTS // each)
        step = max(1, MAX_ELEMENTS // (each * min(heads, len(q))))
        whole = count if self.queries is not None else t // self.width
        position = (self.keys[..., None] * self.unit + torch.arange(self.unit, device=q.device)).flatten(1)
        real = (position >= 0) & (position < (t if self.length is None else self.length))
        exists = None if self.queries is None else (self.queries >= 0) & (self.queries < t)
        full = self.seen.flatten(1).all(1) & real.all(1)
        full = (full if exists is None else full & exists.all(1)).tolist()
        used = self.used(real)
        spare = (~used.all(1)).tolist()
        for start, stop in pairwise([*range(0, whole, step), *range(whole, count + 1)]):
            keys, seen, here = self.keys[start:stop], self.seen[start:stop], real[start:stop]
            if stop == start + 1 and spare[start]:
                keys, seen, here = only(used[start], keys, seen, here)
            if self.queries is None or exists is None:
                at, known = slice(start * self.width, min(stop * self.width, t)), None
                a = (at.stop - at.start) // (stop - start)
            else:
                known, a = exists[start:stop].flatten(), self.width
                at = self.queries[start:stop].flatten().clamp(0, t - 1)
            pairs = None if all(full[start:stop]) else pair_mask(seen, here, known, self.width, a, like=q)
            near = side_by_side(keys.flatten().clamp(0, (t - 1) // self.unit), self.unit, tiles=stop - start)
            for first in range(0, len(q), heads):
                some = tuple(x[first : first + heads] for x in self.tensors)
                yield Chunk(some, at, known, a, stop - start, near, self.unit, pairs, self.buffers)

    def used(self, real: Tensor) -> Tensor:
        """Which units any query of a tile sees (tiles c), or the first if there is none."""
        c = self.keys.shape[1]
        if self.seen.shape[2] % c:  # one of `seen` stands for several units
            return torch.ones_like(self.keys, dtype=torch.bool)
        used = self.seen.unflatten(2, (c, -1)).any(3).any(1) & real.unflatten(1, (c, -1)).any(2)
        used[:, 0] |= ~used.any(1)
        return used


def only(used: Tensor, keys: Tensor, seen: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One tile's keys, and what is known of them, without units that are not used."""
    c = len(used)
    seen = seen.unflatten(2, (c, -1))[:, :, used].flatten(2)
    return keys[:, used], seen, real.unflatten(1, (c, -1))[:, used].flatten(1)


def side_by_side(units: Tensor, unit: int, *, tiles: int) -> slice | Tensor:
    """The units of some tiles; a slice of tokens where they are one tile's, one after the other."""
    if tiles > 1:
        return units
    first, last = int(units[0]), int(units[-1])
    if last - first + 1 != len(units) or (units.diff() != 1).any():
        return units
    return slice(first * unit, (last + 1) * unit)


def pair_mask(
    seen: Tensor, real: Tensor, exists: Tensor | None, width: int, a: int, *, like: Tensor
) -> Tensor | None:
    """One for a pair of (tiles a c) that counts, else zero; None where all do."""
    if seen.all() and real.all() and (exists is None or exists.all()):
        return None
    seen = seen.repeat_interleave(width // seen.shape[1], 1)[:, :a]
    seen = seen.repeat_interleave(real.shape[1] // seen.shape[2], 2) & real[:, None]
    if exists is not None:
        seen = seen & exists.view(len(seen), a, 1)
    return seen.to(like.dtype)


class Chunk(NamedTuple):
    """Some tiles: their queries, keys and values."""

    tensors: tuple[Tensor, ...]
    at: slice | Tensor  # the queries' places
    exists: Tensor | None  # which of them there are; None: all
    a: int
    tiles: int
    near: slice | Tensor  # the keys: tokens of one tile, or units
    unit: int
    pairs: Tensor | None  # one where a pair counts, else zero; None: all count
    buffers: Buffers

    def gathered(self, name: str, x: Tensor) -> Tensor:
        """(heads tiles c _)"""
        if isinstance(self.near, slice):
            return x[:, None, self.near]
        u, c = self.unit, x.shape[2]
        into = self.buffers.take(name, len(x), len(self.near), u * c)
        torch.index_select(x.unflatten(1, (-1, u)).flatten(2), 1, self.near, out=into)
        return into.view(len(x), self.tiles, -1, c)

    def of(self, x: Tensor) -> Tensor:
        """What belongs to the queries, (heads tiles a _)."""
        found = x[:, self.at] if isinstance(self.at, slice) else x.index_select(1, self.at)
        return found.unflatten(1, (self.tiles, self.a))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        into = self.buffers.take("scores", *q.shape[:3], k.shape[2])
        return inner(q, k, into, scale=q.shape[-1] ** -0.5)

    def sum_up(self) -> None:
        """Adds to the sums of exp(s_ij) v_j, and of exp(s_ij), what these tiles have of them."""
        q, k, v, numerator, total = self.tensors
        weights = self.scores(self.of(q), self.gathered("near", k))
        if self.pairs is None:
            weights.exp_()
        else:  # a hidden pair must come to zero, and infinity times zero is none
            weights.clamp_(max=HIGHEST).exp_().mul_(self.pairs)
        y = self.gathered("near", v)
        found = average(weights, y, self.buffers.take("found", *weights.shape[:3], y.shape[3]))
        self.add_to_queries(numerator, found.flatten(1, 2))
        self.add_to_queries(total, weights.sum(-1).flatten(1, 2))

    def softmax(self) -> tuple[Tensor, Tensor]:
        """Outputs and lse over the keys of these tiles alone, (heads queries _)."""
        scores = self.scores(self.of(self.tensors[0]), self.gathered("near", self.tensors[1]))
        if self.pairs is not None:
            scores.masked_fill_(self.pairs == 0, -torch.inf)
        lse = scores.logsumexp(-1)
        weights = scores.sub_(lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp_()
        y = self.gathered("near", self.tensors[2])
        out = average(weights, y, self.buffers.take("found", *weights.shape[:3], y.shape[3]))
        return out.flatten(1, 2), lse.flatten(1, 2)

    def backward(self, grad: Tensor, lse: Tensor, delta: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        """Adds to the gradients what passes through these tiles."""
        q, k, grad = self.of(self.tensors[0]), self.gathered("keys", self.tensors[1]), self.of(grad)
        weights = self.scores(q, k).sub_(self.of(lse)[..., None])
        lowest = math.log(torch.finfo(k.dtype).tiny) + 1  # below it exp is slow; above zero are hidden pairs
        weights.clamp_(lowest, 0).exp_()
        if self.pairs is not None:
            weights.mul_(self.pairs)
        values = self.gathered("near", self.tensors[2])
        change = inner(grad, values, self.buffers.take("change", *weights.shape))
        change.sub_(self.of(delta)[..., None]).mul_(weights)
        self.add(dv, outer(weights, grad, self.buffers.take("near", *values.shape)))
        scale, found = q.shape[-1] ** -0.5, self.buffers.take("found", *q.shape)
        self.add_to_queries(dq, average(change, k, found, scale=scale).flatten(1, 2))
        self.add(dk, outer(change, q, self.buffers.take("keys", *k.shape), scale=scale))

    def add_to_queries(self, to: Tensor, found: Tensor) -> None:
        if isinstance(self.at, slice):
            to[:, self.at].add_(found)
        else:
            to.index_add_(1, self.at, found)

    def add(self, to: Tensor, found: Tensor) -> None:
        found = found.flatten(1, 2)
        if isinstance(self.near, slice):
            to[:, self.near].add_(found)
        else:
            by_unit = (x.unflatten(1, (-1, self.unit)).flatten(2) for x in (to, found))
            next(by_unit).index_add_(1, self.near, next(by_unit))


# Products of a single query with its own keys go faster number by number than as matrices of one row.


def inner(
    x: Float[Tensor, "h tiles a w"],
    y: Float[Tensor, "h tiles c w"],
    into: Float[Tensor, "h tiles a c"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "h tiles a c"]:
    return (x * y).sum(-1)[:, :, None].mul_(scale) if x.shape[2] == 1 else product(x, y.mT, into, scale)


def average(
    weights: Float[Tensor, "h tiles a c"],
    y: Float[Tensor, "h tiles c w"],
    into: Float[Tensor, "h tiles a w"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "h tiles a w"]:
    if weights.shape[2] == 1:
        return (weights.mT * y).sum(2, keepdim=True).mul_(scale)
    return product(weights, y, into, scale)


def outer(
    weights: Float[Tensor, "h tiles a c"],
    x: Float[Tensor, "h tiles a w"],
    into: Float[Tensor, "h tiles c w"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "h tiles c w"]:
    return (weights.mT * x).mul_(scale) if weights.shape[2] == 1 else product(weights.mT, x, into, scale)


def product(
    x: Float[Tensor, "h tiles a w"],
    y: Float[Tensor, "h tiles w c"],
    into: Float[Tensor, "h tiles a c"],
    scale: float,
) -> Float[Tensor, "h tiles a c"]:
    found = into.flatten(0, 1)
    torch.baddbmm(found, x.flatten(0, 1), y.flatten(0, 1), beta=0, alpha=scale, out=found)
    return into


def rows(tiling: Tiling, lengths: Tensor | None, *tensors: Tensor) -> Iterator[RowTiles]:
    """The tiles of each sequence, or of all at once where sequences do not differ."""
    queries, keys, seen, width, unit = tiling
    q, k, v, *others = tensors
    tensors = (q, in_units(k, unit), in_units(v, unit), *others)
    buffers = Buffers(q)
    if lengths is None and len(keys) == len(seen) == 1 and (queries is None or len(queries) == 1):
        heads = tuple(x.flatten(0, 1) for x in tensors)
        yield RowTiles(
            heads, None if queries is None else queries[0], keys[0], seen[0], width, unit, None, buffers
        )
        return
    for b in range(len(tensors[0])):
        index = None if queries is None else queries[min(b, len(queries) - 1)]
        key, pairs = (x[min(b, len(x) - 1)] for x in (keys, seen))
        yield RowTiles(
            tuple(x[b] for x in tensors),
            index,
            key,
            pairs,
            width,
            unit,
            None if lengths is None else lengths[b],
            buffers,
        )


def merge(out: Tensor, lse: Tensor, part: Tensor, total: Tensor, tiles: Chunk) -> None:
    """Outputs over more keys of some queries, in place."""
    if isinstance(tiles.at, slice):
        merge_queries(out[:, tiles.at], lse[:, tiles.at], part, total)
        return
    assert tiles.exists is not None
    for tile in range(tiles.tiles):  # one by one: a query may be in several
        some = slice(tile * tiles.a, (tile + 1) * tiles.a)
        exists = tiles.exists[some]
        at = tiles.at[some][exists]
        whole, whole_lse = out[:, at], lse[:, at]
        merge_queries(whole, whole_lse, part[:, some][:, exists], total[:, some][:, exists])
        out[:, at], lse[:, at] = whole, whole_lse


def merge_queries(out: Tensor, lse: Tensor, part: Tensor, total: Tensor) -> None:
    after = torch.logaddexp(lse, total)
    known = after.masked_fill(after == -torch.inf, 0)
    out.mul_((lse - known).exp_()[..., None]).add_(part.mul_((total - known).exp_()[..., None]))
    lse.copy_(after)
