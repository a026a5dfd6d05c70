"""Tiles a few at a time, in PyTorch's operators: what `native/tiles.cpp` does, for any device and precision.

A chunk is as many tiles of as many heads as fit in cache together; `ops/tiles.py` says what is computed.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

TILE_NUMBERS = 2**20  # that the tiles taken at once may hold: more leaves the cache


class Tiling(NamedTuple):
    """Tiles of one shape. Places below zero, or behind the last token, hold none."""

    queries: Int[Tensor, "#b tiles a"] | None  # None: tile after tile, all tokens in order
    keys: Int[Tensor, "#b tiles c"]  # in units: key c stands for tokens c * unit to (c + 1) * unit - 1
    seen: Bool[Tensor, "#b tiles A C"]  # pairs; one of `seen` may stand for several queries or keys in a row
    width: int  # a, the queries of a tile
    unit: int


def in_units(x: Tensor, unit: int) -> Tensor:
    """`x` with zeros behind it, up to a whole number of units."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % unit)) if x.shape[2] % unit else x


class Row(NamedTuple):
    """Tiles of heads that share them: of one sequence where sequences differ, else of several."""

    tensors: tuple[Tensor, ...]  # (heads tokens _) each, and q, k, v are the first; k and v are whole units
    queries: Tensor | None
    keys: Tensor
    seen: Tensor
    width: int
    unit: int
    length: Tensor | None

    def chunks(self) -> Iterator["Chunk"]:
        """A few tiles of a few heads at once; the last tile may have fewer queries."""
        q, _, v, *_ = self.tensors
        (count, c), t = self.keys.shape, q.shape[1]
        each = self.width * c * self.unit + (self.width + c * self.unit) * (q.shape[2] + v.shape[2])
        heads = max(1, TILE_NUMBERS // each)
        step = max(1, TILE_NUMBERS // (each * min(heads, len(q))))
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
            bias = None if all(full[start:stop]) else hidden(seen, here, known, self.width, a, like=q)
            near = side_by_side(keys.flatten().clamp(0, (t - 1) // self.unit), self.unit, tiles=stop - start)
            for first in range(0, len(q), heads):
                some = tuple(x[first : first + heads] for x in self.tensors)
                yield Chunk(some, at, known, a, stop - start, near, self.unit, bias)

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


def hidden(
    seen: Tensor, real: Tensor, exists: Tensor | None, width: int, a: int, *, like: Tensor
) -> Tensor | None:
    """-inf where a pair of (tiles a c) does not count; None where all do."""
    if seen.all() and real.all() and (exists is None or exists.all()):
        return None
    seen = seen.repeat_interleave(width // seen.shape[1], 1)[:, :a]
    seen = seen.repeat_interleave(real.shape[1] // seen.shape[2], 2) & real[:, None]
    if exists is not None:
        seen = seen & exists.view(len(seen), a, 1)
    return like.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)


class Chunk(NamedTuple):
    """Some tiles: their queries, keys and values."""

    tensors: tuple[Tensor, ...]
    at: slice | Tensor  # the queries' places
    exists: Tensor | None  # which of them there are; None: all
    a: int
    tiles: int
    near: slice | Tensor  # the keys: tokens of one tile, or units
    unit: int
    bias: Tensor | None

    def gathered(self, x: Tensor) -> Tensor:
        """(heads tiles c _)"""
        if isinstance(self.near, slice):
            return x[:, None, self.near]
        u, c = self.unit, x.shape[2]
        found = x.unflatten(1, (-1, u)).flatten(2).index_select(1, self.near)
        return found.unflatten(2, (u, c)).flatten(1, 2).unflatten(1, (self.tiles, -1))

    def of(self, x: Tensor) -> Tensor:
        """What belongs to the queries, (heads tiles a _)."""
        found = x[:, self.at] if isinstance(self.at, slice) else x.index_select(1, self.at)
        return found.unflatten(1, (self.tiles, self.a))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = scalar(q * q.shape[-1] ** -0.5, k)
        return scores if self.bias is None else scores.add_(self.bias)

    def softmax(self) -> tuple[Tensor, Tensor]:
        """Outputs and lse over the keys of these tiles alone, (heads queries _)."""
        scores = self.scores(self.of(self.tensors[0]), self.gathered(self.tensors[1]))
        top = scores.amax(-1)
        weights = torch.softmax(scores, -1, out=scores)
        out, lse = mixed(weights, self.gathered(self.tensors[2])), top - weights.amax(-1).log_()
        if self.bias is not None and (blind := top == -torch.inf).any():  # they see nothing here
            out, lse = out.masked_fill_(blind[..., None], 0), lse.masked_fill_(blind, -torch.inf)
        return out.flatten(1, 2), lse.flatten(1, 2)

    def pull(self, grad: Tensor, lse: Tensor, delta: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        """Adds to the gradients what passes through these tiles."""
        q, k, grad = self.of(self.tensors[0]), self.gathered(self.tensors[1]), self.of(grad)
        weights = exp_(self.scores(q, k).sub_(self.of(lse)[..., None]))
        change = scalar(grad, self.gathered(self.tensors[2]))
        change.sub_(self.of(delta)[..., None]).mul_(weights).mul_(q.shape[-1] ** -0.5)
        self.add(dv, spread(weights, grad))
        self.add(dk, spread(change, q))
        found = mixed(change, k).flatten(1, 2)
        if isinstance(self.at, slice):
            dq[:, self.at] += found
        else:
            dq.index_add_(1, self.at, found)

    def add(self, to: Tensor, found: Tensor) -> None:
        found = found.flatten(1, 2)
        if isinstance(self.near, slice):
            to[:, self.near].add_(found)
        else:
            by_unit = (x.unflatten(1, (-1, self.unit)).flatten(2) for x in (to, found))
            next(by_unit).index_add_(1, self.near, next(by_unit))


def exp_(x: Tensor) -> Tensor:
    """exp in place, without the slow path that libraries take where x is -inf."""
    lowest = math.log(torch.finfo(x.dtype).tiny) + 1
    return F.threshold(x.clamp_(min=lowest).exp_(), math.exp(lowest + 1), 0.0, inplace=True)


# Products of a single query with its own keys go faster number by number than as matrices of one row.


def scalar(x: Float[Tensor, "h tiles a w"], y: Float[Tensor, "h tiles c w"]) -> Float[Tensor, "h tiles a c"]:
    return (x * y).sum(-1)[:, :, None] if x.shape[2] == 1 else x @ y.mT


def mixed(
    weights: Float[Tensor, "h tiles a c"], y: Float[Tensor, "h tiles c w"]
) -> Float[Tensor, "h tiles a w"]:
    return (weights.mT * y).sum(2, keepdim=True) if weights.shape[2] == 1 else weights @ y


def spread(
    weights: Float[Tensor, "h tiles a c"], x: Float[Tensor, "h tiles a w"]
) -> Float[Tensor, "h tiles c w"]:
    return weights.mT * x if weights.shape[2] == 1 else weights.mT @ x


def rows(tiling: Tiling, lengths: Tensor | None, *tensors: Tensor) -> Iterator[Row]:
    """The tiles of each sequence, or of all at once where sequences do not differ."""
    queries, keys, seen, width, unit = tiling
    q, k, v, *others = tensors
    tensors = (q, in_units(k, unit), in_units(v, unit), *others)
    if lengths is None and len(keys) == len(seen) == 1 and (queries is None or len(queries) == 1):
        heads = tuple(x.flatten(0, 1) for x in tensors)
        yield Row(heads, None if queries is None else queries[0], keys[0], seen[0], width, unit, None)
        return
    for b in range(len(tensors[0])):
        index = None if queries is None else queries[min(b, len(queries) - 1)]
        key, pairs = (x[min(b, len(x) - 1)] for x in (keys, seen))
        yield Row(
            tuple(x[b] for x in tensors),
            index,
            key,
            pairs,
            width,
            unit,
            None if lengths is None else lengths[b],
        )


def merge(out: Tensor, lse: Tensor, part: Tensor, total: Tensor, tiles: Chunk, *, first: bool) -> None:
    """Outputs over more keys of some queries, in place."""
    at = tiles.at
    if not isinstance(at, slice):
        at, part, total = at[tiles.exists], part[:, tiles.exists], total[:, tiles.exists]
    elif first:
        out[:, at], lse[:, at] = part, total
        return
    before, whole = lse[:, at], out[:, at]  # views where queries are side by side
    after = torch.logaddexp(before, total)
    known = after.masked_fill(after == -torch.inf, 0)
    whole.mul_((before - known).exp_()[..., None]).add_(part.mul_((total - known).exp_()[..., None]))
    lse[:, at] = after
    if not isinstance(at, slice):
        out[:, at] = whole
