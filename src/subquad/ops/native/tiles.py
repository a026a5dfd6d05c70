"""Calls of tiles.cpp, for one tiling at a time. Shapes: q (b h t d), k (b h t d), v (b h t e)."""

from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.native.library import KernelCall, rows
from subquad.ops.tile_chunks import Tiling

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]  # q, k, v, lengths


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


def forward(inputs: Inputs, tiling: Tiling, out: Tensor, lse: Tensor) -> None:
    """Takes the pairs of `tiling` into `out` (b h t e) and `lse` (b h t), which are contiguous."""
    call = prepared(inputs, tiling)
    call.point(out=out, lse=lse)
    call.run("tiled")


def backward(
    grad: Tensor,
    delta: Tensor,
    inputs: Inputs,
    tiling: Tiling,
    lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Adds to the gradients of q, k and v, which are contiguous."""
    call = prepared(inputs, tiling)
    call.point(grad=grad, delta=delta, lse=lse, dq=dq, dk=dk, dv=dv)
    call.run("tiled_backward")


def prepared(inputs: Inputs, tiling: Tiling) -> Tiled:
    """What every call says of its inputs."""
    q, k, v, lengths = inputs
    queries, keys, seen = tiling.queries, tiling.keys, tiling.seen
    batch, heads, length, d = q.shape
    call = Tiled(
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
    call.tokens(q=q, k=k, v=v)
    call.point(lengths=lengths, queries=queries, keys=keys, seen=seen)
    return call
