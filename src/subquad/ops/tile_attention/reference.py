"""Tiles in PyTorch's operators, a few at a time, so that what is made of them stays in cache (`chunks.py`).

Their sums of exponentials add up; where these leave the range of float32, outputs merge by lse.
"""

import math

import torch
from torch import Tensor

from subquad.ops.shared.allocation import empty_result
from subquad.ops.tile_attention import TileCall, TileResult
from subquad.ops.tile_attention.chunks import in_units, merge, rows
from subquad.ops.window_attention import WindowResult
from subquad.ops.window_attention import reference as window


def refuses(call: TileCall) -> None:
    """Nothing: any device, float32 and float64."""


def forward(call: TileCall) -> TileResult:
    out, lse, lost = summed(call)
    if lost.any():
        exact = merged(call)
        out, lse = torch.where(lost[..., None], exact.out, out), torch.where(lost, exact.lse, lse)
    return TileResult(out, lse)


def initial(call: TileCall) -> TileResult:
    """Outputs and lse before the first tile: those of the band."""
    if call.window is None:
        return TileResult(empty_result(call.v).zero_(), call.v.new_full(call.v.shape[:3], -torch.inf))
    return TileResult(*window.forward(call.window))


def summed(call: TileCall) -> tuple[Tensor, Tensor, Tensor]:
    """By sums of exponentials, which are divided at last; the third tells where they left float32's range."""
    q, k, v, tilings, lengths, _ = call
    out, lse = initial(call)
    total = lse.exp()
    out.mul_(total[..., None])
    for tiling in tilings:
        for row in rows(tiling, lengths, q, k, v, out, total):
            for chunk in row.chunks():
                chunk.sum_up()
    lse = total.log()
    lost = ~(lse.abs() <= window.RANGE)
    if lengths is not None:
        lost &= (torch.arange(q.shape[2], device=q.device) < lengths[:, None])[:, None]
    return out.div_(total.masked_fill(total == 0, 1)[..., None]), lse, lost


def merged(call: TileCall) -> TileResult:
    """By softmax over a few tiles at a time."""
    q, k, v, tilings, lengths, _ = call
    out, lse = initial(call)
    for tiling in tilings:
        for row in rows(tiling, lengths, q, k, v, out, lse):
            for chunk in row.chunks():
                part, part_lse = chunk.softmax()
                *_, row_out, row_lse = chunk.tensors
                merge(row_out, row_lse, part, part_lse, chunk)
    return TileResult(out, lse)


def backward(grad: Tensor, call: TileCall, result: TileResult) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, tilings, lengths, _ = call
    if call.window is None:
        dq, dk, dv = (empty_result(x).zero_() for x in (q, k, v))
    else:
        grads = WindowResult(grad, torch.zeros_like(result.lse))
        dq, dk, dv = window.backward(grads, call.window, WindowResult(*result))
    unit = math.lcm(1, *(tiling.unit for tiling in tilings))
    dk, dv = in_units(dk, unit), in_units(dv, unit)
    delta = torch.einsum("bhtd,bhtd->bht", grad, result.out)
    lse = result.lse.masked_fill(result.lse == -torch.inf, torch.inf)  # a query that sees nothing gives none
    for tiling in tilings:
        for row in rows(tiling, lengths, q, k, v, grad, lse, delta, dq, dk, dv):
            for chunk in row.chunks():
                chunk.backward(*chunk.tensors[3:])
    return dq, dk[:, :, : k.shape[2]].contiguous(), dv[:, :, : v.shape[2]].contiguous()
