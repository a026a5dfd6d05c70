"""Softmax attention over tiles: some queries beside some keys, and one softmax over all tiles of a query.

    out_i = sum_j exp(s_ij - lse_i) v_j,    lse_i = log sum_j exp(s_ij),    over the pairs (i, j) of any tile

and, if there is one, over the pairs of a sliding window (`ops/window.py`). Every pair belongs to one tile at
most. Tiles are taken a few at a time, so that what is made of them stays in cache; outputs merge by lse.
Only the outputs and the final lse are kept for the backward pass, where tiles make their weights again.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops import window

TILE_NUMBERS = 2**20  # that the tiles taken at once may hold: more leaves the cache
INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor[] queries, Tensor[] keys, Tensor[] seen, int[] widths, "
    "int[] units, Tensor? lengths, int? left, int? right"
)


class Tiling(NamedTuple):
    """Tiles of one shape. Places below zero, or behind the last token, hold none."""

    queries: Int[Tensor, "#b tiles a"] | None  # None: tile after tile, all tokens in order
    keys: Int[Tensor, "#b tiles c"]  # in units: key c stands for tokens c * unit to (c + 1) * unit - 1
    seen: Bool[Tensor, "#b tiles A C"]  # pairs; one of `seen` may stand for several queries or keys in a row
    width: int  # a, the queries of a tile
    unit: int


def tile_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t e"],
    tilings: list[Tiling],
    *,
    lengths: Int[Tensor, " b"] | None,
    band: tuple[int, int] | None,
) -> Float[Tensor, "b h t e"]:
    """Outputs; zeros for a query that sees nothing. `band`: keys to the left and right of each query.

    Raises `ValueError` for inputs whose shapes do not fit one another.
    """
    window.require_rows(q, k, v, lengths)
    nothing = torch.empty(0, dtype=torch.int64, device=q.device)
    out, _ = torch.ops.subquad.tiles(
        *(q, k, v),
        [nothing if x.queries is None else x.queries for x in tilings],
        [x.keys for x in tilings],
        [x.seen for x in tilings],
        [x.width for x in tilings],
        [x.unit for x in tilings],
        lengths,
        *((None, None) if band is None else band),
    )
    return out


@torch.library.custom_op("subquad::tiles", mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor)")
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: list[Tensor],
    keys: list[Tensor],
    seen: list[Tensor],
    widths: list[int],
    units: list[int],
    lengths: Tensor | None,
    left: int | None,
    right: int | None,
) -> tuple[Tensor, Tensor]:
    begun = left is not None and right is not None
    if left is not None and right is not None:
        out, lse = window.forward(q, k, v, lengths, left, right)
    else:
        out, lse = v.new_zeros(v.shape), v.new_full(v.shape[:3], -torch.inf)
    for tiling in map(Tiling._make, zip(queries, keys, seen, widths, units, strict=True)):
        for row in rows(tiling, lengths, q, k, v, out, lse):
            for tiles in row.chunks():
                part, total = tiles.softmax()
                whole, sum_so_far = tiles.tensors[3:]
                merge(whole, sum_so_far, part, total, tiles, first=not begun)
        begun = True
    return out, lse


@torch.library.custom_op(
    "subquad::tiles_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor lse, {INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: list[Tensor],
    keys: list[Tensor],
    seen: list[Tensor],
    widths: list[int],
    units: list[int],
    lengths: Tensor | None,
    left: int | None,
    right: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if left is not None and right is not None:
        found = window.backward(grad, torch.zeros_like(lse), out, lse, q, k, v, lengths, left, right)
    else:
        found = tuple(torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    whole = math.lcm(1, *units)
    dq, dk, dv = found[0], in_units(found[1], whole), in_units(found[2], whole)
    delta = (grad * out).sum(-1)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # a query that sees nothing gives no weight
    for tiling in map(Tiling._make, zip(queries, keys, seen, widths, units, strict=True)):
        for row in rows(tiling, lengths, q, k, v, grad, lse, delta, dq, dk, dv):
            for tiles in row.chunks():
                tiles.pull(*tiles.tensors[3:])
    return dq, dk[:, :, : k.shape[2]].contiguous(), dv[:, :, : v.shape[2]].contiguous()


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
        for start, stop in pairwise([*range(0, whole, step), *range(whole, count + 1)]):
            keys, seen, here = self.keys[start:stop], self.seen[start:stop], real[start:stop]
            if stop == start + 1 and c > 1 and not full[start]:
                keys, seen, here = in_use(keys, seen, here)
            if self.queries is None or exists is None:
                at, known = slice(start * self.width, min(stop * self.width, t)), None
                a = (at.stop - at.start) // (stop - start)
            else:
                known, a = exists[start:stop].flatten(), self.width
                at = self.queries[start:stop].flatten().clamp(0, t - 1)
            bias = None if all(full[start:stop]) else hidden(seen, here, known, self.width, a, like=q)
            units = keys.flatten().clamp(0, (t - 1) // self.unit)
            for first in range(0, len(q), heads):
                some = tuple(x[first : first + heads] for x in self.tensors)
                yield Chunk(some, at, known, a, stop - start, units, self.unit, bias)


def in_use(keys: Tensor, seen: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of one tile, the units of keys that any query sees, or the first if there is none."""
    c = keys.shape[1]
    each = seen.shape[2] // c
    if each * c != seen.shape[2]:  # one of `seen` stands for several units
        return keys, seen, real
    used = (seen.unflatten(2, (c, each)).any(3).any(1) & real.unflatten(1, (c, -1)).any(2))[0]
    used[0] |= ~used.any()
    seen = seen.unflatten(2, (c, each))[:, :, used].flatten(2)
    return keys[:, used], seen, real.unflatten(1, (c, -1))[:, used].flatten(1)


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
    units: Tensor
    unit: int
    bias: Tensor | None

    def gathered(self, x: Tensor) -> Tensor:
        """(heads tiles c _)"""
        u, c = self.unit, x.shape[2]
        found = x.unflatten(1, (-1, u)).flatten(2).index_select(1, self.units)
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
        weights = self.scores(self.of(self.tensors[0]), self.gathered(self.tensors[1]))
        top = weights.amax(-1, keepdim=True).clamp_(min=torch.finfo(weights.dtype).min)
        total = weights.sub_(top).exp_().sum(-1, keepdim=True)
        out = mixed(weights, self.gathered(self.tensors[2])).div_(total.masked_fill(total == 0, 1))
        return out.flatten(1, 2), (top + total.log())[..., 0].flatten(1, 2)

    def pull(self, grad: Tensor, lse: Tensor, delta: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        """Adds to the gradients what passes through these tiles."""
        q, k, grad = self.of(self.tensors[0]), self.gathered(self.tensors[1]), self.of(grad)
        weights = self.scores(q, k).sub_(self.of(lse)[..., None]).exp_()
        change = (
            scalar(grad, self.gathered(self.tensors[2]))
            .sub_(self.of(delta)[..., None])
            .mul_(weights)
            .mul_(q.shape[-1] ** -0.5)
        )
        self.add(dv, spread(weights, grad))
        self.add(dk, spread(change, q))
        found = mixed(change, k).flatten(1, 2)
        if isinstance(self.at, slice):
            dq[:, self.at] += found
        else:
            dq.index_add_(1, self.at, found)

    def add(self, to: Tensor, found: Tensor) -> None:
        u = self.unit
        found = found.flatten(1, 2).unflatten(1, (-1, u)).flatten(2)
        to.unflatten(1, (-1, u)).flatten(2).index_add_(1, self.units, found)


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
    queries = None if queries is None or queries.numel() == 0 else queries
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
    if isinstance(tiles.at, slice):
        at = tiles.at
        if first:
            out[:, at], lse[:, at] = part, total
            return
    else:
        at, part, total = tiles.at[tiles.exists], part[:, tiles.exists], total[:, tiles.exists]
    before = lse[:, at]
    after = torch.logaddexp(before, total)
    known = after.masked_fill(after == -torch.inf, 0)
    out[:, at] = out[:, at] * (before - known).exp()[..., None] + part.mul_((total - known).exp()[..., None])
    lse[:, at] = after


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape[:3])


@backward.register_fake
def _(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, queries, keys, seen, ctx.widths, ctx.units, lengths, ctx.left, ctx.right = inputs
    ctx.count = len(queries)
    ctx.save_for_backward(*output, q, k, v, *queries, *keys, *seen, lengths)


def gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    out, lse, q, k, v, *lists, lengths = ctx.saved_tensors
    queries, keys, seen = (lists[x * ctx.count : (x + 1) * ctx.count] for x in range(3))
    found = torch.ops.subquad.tiles_backward(
        *(grad, out, lse, q, k, v, queries, keys, seen), ctx.widths, ctx.units, lengths, ctx.left, ctx.right
    )
    nothing = [None] * ctx.count
    return *found, nothing, nothing, nothing, None, None, None, None, None


forward.register_autograd(gradients, setup_context=remember)
