"""Softmax attention over tiles: some queries beside some keys, and one softmax over all tiles of a query.

    out_i = sum_j exp(s_ij - lse_i) v_j,    lse_i = log sum_j exp(s_ij),    over the pairs (i, j) of any tile

and, if there is one, over the pairs of a sliding window (`ops/window.py`). Every pair belongs to one tile at
most. Tiles are taken a few at a time, so that what is made of them stays in cache. Their sums of exponentials
add up; where these leave the range of float32, outputs merge by lse. Only the outputs and the final lse are
kept for the backward pass, where tiles make their weights again.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops import window
from subquad.ops.allocation import empty_result
from subquad.ops.native import tiles as native
from subquad.ops.native.library import usable
from subquad.ops.operator import call_op, differentiable_once
from subquad.ops.shapes import require_dtype, require_places, require_shape
from subquad.ops.tile_chunks import Tiling, in_units, merge, rows

Band = tuple[int, int] | None  # keys to the left and right of each query

INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor[] queries, Tensor[] keys, Tensor[] seen, int[] widths, "
    "int[] units, Tensor? lengths, int? left, int? right"
)


def tile_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t e"],
    tilings: list[Tiling],
    *,
    lengths: Int[Tensor, " b"] | None,
    band: Band,
) -> Float[Tensor, "b h t e"]:
    """Outputs; zeros for a query that sees nothing.

    Raises `ValueError` for inputs whose shapes or dtypes do not fit one another.
    """
    window.require_rows(q, k, v, lengths)
    for tiling in tilings:
        require_tiling(tiling, q)
    return call_op(forward, q, k, v, *apart(tilings), lengths, *((None, None) if band is None else band))[0]


def require_tiling(tiling: Tiling, q: Tensor) -> None:
    """Raise `ValueError` unless what a tiling says of pairs fits its places, and these the batch."""
    queries, keys, seen, width, unit = tiling
    for x in (keys, seen) if queries is None else (queries, keys, seen):
        if x.shape[0] not in (1, q.shape[0]):
            raise ValueError(f"tiles of {x.shape[0]} rows do not fit queries of {q.shape[0]}")
    tiles, c = keys.shape[1:]
    require_places("places of keys", keys, keys.shape[0], tiles, c)
    if queries is not None:
        require_places("places of queries", queries, queries.shape[0], tiles, width)
    rows, columns = seen.shape[2:]
    require_shape("pairs", seen, seen.shape[0], tiles, rows, columns)
    require_dtype("pairs", seen, torch.bool)
    if not rows or not columns or width % rows or c * unit % columns:
        raise ValueError(f"pairs of {rows} x {columns} do not fit tiles of {width} x {c * unit} tokens")


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
    tilings = list(listed(queries, keys, seen, widths, units))
    band = None if left is None or right is None else (left, right)
    if usable(q, k, v):
        out, lse = begun(q, k, v, lengths, band)
        for tiling in tilings:
            native.forward((q, k, v, lengths), tiling, out, lse)
        return out, lse
    out, lse, lost = summed(q, k, v, tilings, lengths, band)
    if lost.any():
        again, its_lse = merged(q, k, v, tilings, lengths, band)
        out, lse = torch.where(lost[..., None], again, out), torch.where(lost, its_lse, lse)
    return out, lse


def begun(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, band: Band) -> tuple[Tensor, Tensor]:
    """What there is before the first tile."""
    if band is None:
        return empty_result(v).zero_(), v.new_full(v.shape[:3], -torch.inf)
    return window.attended(q, k, v, lengths, *band)


def summed(
    q: Tensor, k: Tensor, v: Tensor, tilings: list[Tiling], lengths: Tensor | None, band: Band
) -> tuple[Tensor, Tensor, Tensor]:
    """By sums of exponentials, which are divided at last; the third tells where they left float32's range."""
    out, lse = begun(q, k, v, lengths, band)
    total = lse.exp()
    out.mul_(total[..., None])
    for tiling in tilings:
        for row in rows(tiling, lengths, q, k, v, out, total):
            for tiles in row.chunks():
                tiles.sum_up()
    lse = total.log()
    lost = ~(lse.abs() <= window.RANGE)
    if lengths is not None:
        lost &= (torch.arange(q.shape[2], device=q.device) < lengths[:, None])[:, None]
    return out.div_(total.masked_fill(total == 0, 1)[..., None]), lse, lost


def merged(
    q: Tensor, k: Tensor, v: Tensor, tilings: list[Tiling], lengths: Tensor | None, band: Band
) -> tuple[Tensor, Tensor]:
    """By softmax over a few tiles at a time."""
    out, lse = begun(q, k, v, lengths, band)
    for tiling in tilings:
        for row in rows(tiling, lengths, q, k, v, out, lse):
            for tiles in row.chunks():
                part, own = tiles.softmax()
                _, _, _, whole, so_far = tiles.tensors
                merge(whole, so_far, part, own, tiles)
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
        found = window.pulled_back(grad, torch.zeros_like(lse), out, lse, q, k, v, lengths, left, right)
    else:
        found = tuple(empty_result(x).zero_() for x in (q, k, v))
    whole = 1 if usable(q, k, v, grad) else math.lcm(1, *units)
    dq, dk, dv = found[0], in_units(found[1], whole), in_units(found[2], whole)
    delta = torch.einsum("bhtd,bhtd->bht", grad, out)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # a query that sees nothing gives no weight
    for tiling in listed(queries, keys, seen, widths, units):
        if usable(q, k, v, grad):
            native.backward(grad.contiguous(), delta, (q, k, v, lengths), tiling, lse, dq, dk, dv)
            continue
        for row in rows(tiling, lengths, q, k, v, grad, lse, delta, dq, dk, dv):
            for tiles in row.chunks():
                tiles.pull(*tiles.tensors[3:])
    return dq, dk[:, :, : k.shape[2]].contiguous(), dv[:, :, : v.shape[2]].contiguous()


def apart(tilings: list[Tiling]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int], list[int]]:
    """Tilings as an operator can take them: nothing, for queries in order, is an empty tensor."""
    return (
        [x.keys.new_empty(0) if x.queries is None else x.queries for x in tilings],
        [x.keys for x in tilings],
        [x.seen for x in tilings],
        [x.width for x in tilings],
        [x.unit for x in tilings],
    )


def listed(
    queries: list[Tensor], keys: list[Tensor], seen: list[Tensor], widths: list[int], units: list[int]
) -> Iterator[Tiling]:
    """Tilings again, of what `apart` made of them."""
    for own, near, pairs, width, unit in zip(queries, keys, seen, widths, units, strict=True):
        yield Tiling(own if own.numel() else None, near, pairs, width, unit)


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
    found = call_op(
        backward,
        *(grad, out, lse, q, k, v, queries, keys, seen),
        ctx.widths,
        ctx.units,
        lengths,
        ctx.left,
        ctx.right,
    )
    nothing = [None] * ctx.count
    return *found, nothing, nothing, nothing, None, None, None, None, None


forward.register_autograd(gradients, setup_context=remember)
differentiable_once(backward)
