"""Tiles by tiles.cpp, one tiling after the other: on the CPU, in float32."""

from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.native.library import KernelCall, rows, why_not_float32
from subquad.ops.shared.allocation import empty_result
from subquad.ops.tile_attention import TileCall, TileResult, Tiling
from subquad.ops.window_attention import WindowResult
from subquad.ops.window_attention import cpu as window


class Tiled(KernelCall):
    """The struct of kernels.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "length", "tiles")),
        *((f"{name}_batch", c_int64) for name in ("queries", "keys", "seen")),
        *((name, c_int32) for name in ("d", "e", "width", "units", "unit", "rows", "columns", "threads")),
        ("scale", c_float),
        *rows("q", "k", "v"),
        *((name, c_void_p) for name in ("lengths", "queries", "keys", "seen")),
        *((name, c_void_p) for name in ("out", "lse", "grad", "delta", "dq", "dk", "dv")),
    )


def refuses(call: TileCall) -> str | None:
    return why_not_float32(call.q, call.k, call.v)


def forward(call: TileCall) -> TileResult:
    if call.window is None:
        out, lse = empty_result(call.v).zero_(), call.v.new_full(call.v.shape[:3], -torch.inf)
    else:
        out, lse = window.forward(call.window)
    for tiling in call.tilings:
        kernel_call = tile_kernel_call(call, tiling)
        kernel_call.point(out=out, lse=lse)
        kernel_call.run("tiled")
    return TileResult(out, lse)


def backward(grad: Tensor, call: TileCall, result: TileResult) -> tuple[Tensor, Tensor, Tensor]:
    if call.window is None:
        dq, dk, dv = (empty_result(x).zero_() for x in (call.q, call.k, call.v))
    else:
        grads = WindowResult(grad, torch.zeros_like(result.lse))
        dq, dk, dv = window.backward(grads, call.window, WindowResult(*result))
    delta = torch.einsum("bhtd,bhtd->bht", grad, result.out)
    lse = result.lse.masked_fill(result.lse == -torch.inf, torch.inf)  # a query that sees nothing gives none
    for tiling in call.tilings:
        kernel_call = tile_kernel_call(call, tiling)
        kernel_call.point(grad=grad, delta=delta, lse=lse, dq=dq, dk=dk, dv=dv)  # adds to the last three
        kernel_call.run("tiled_backward")
    return dq, dk, dv


def tile_kernel_call(call: TileCall, tiling: Tiling) -> Tiled:
    """The fields that forward and backward share."""
    q, k, v, _, lengths, _ = call
    queries, keys, seen = tiling.queries, tiling.keys, tiling.seen
    batch, heads, length, d = q.shape
    kernel_call = Tiled(
        batch=batch,
        heads=heads,
        length=length,
        tiles=keys.shape[1],
        queries_batch=0 if queries is None or len(queries) == 1 else queries[0].numel(),
        keys_batch=0 if len(keys) == 1 else keys[0].numel(),
        seen_batch=0 if len(seen) == 1 else seen[0].numel(),
        d=d,
        e=v.shape[3],
        width=tiling.width,
        units=keys.shape[2],
        unit=tiling.unit,
        rows=seen.shape[2],
        columns=seen.shape[3],
        threads=torch.get_num_threads(),
        scale=d**-0.5,
    )
    kernel_call.tokens(q=q, k=k, v=v)
    kernel_call.point(lengths=lengths, queries=queries, keys=keys, seen=seen)
    return kernel_call
