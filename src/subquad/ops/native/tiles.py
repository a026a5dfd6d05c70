"""Calls of tiles.cpp, for one tiling at a time. Shapes: q (b h t d), k (b h t d), v (b h t e)."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.native.library import address, addresses, contiguous_rows, kernels, strides
from subquad.ops.tile_chunks import Tiling

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]  # q, k, v, lengths


class Call(ctypes.Structure):
    """`Tiled` of kernels.h, field by field."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "length", "tiles")),
        *((f"{name}_batch", c_int64) for name in ("queries", "keys", "seen")),
        *((name, c_int32) for name in ("d", "e", "width", "units", "unit", "rows", "columns", "threads")),
        ("scale", c_float),
        *((name, c_void_p) for name in "qkv"),
        *((f"{name}_stride", c_int64 * 3) for name in "qkv"),
        *((name, c_void_p) for name in ("lengths", "queries", "keys", "seen")),
        *((name, c_void_p) for name in ("out", "lse", "grad", "delta", "dq", "dk", "dv")),
    ]


def forward(inputs: Inputs, tiling: Tiling, out: Tensor, lse: Tensor) -> None:
    """Takes the pairs of `tiling` into `out` (b h t e) and `lse` (b h t), which are contiguous."""
    call, held = prepared(inputs, tiling)
    call.out, call.lse = addresses((out, lse))
    library = kernels()
    assert library is not None
    library.tiled(ctypes.byref(call))
    del held


def backward(
    grad: Tensor, delta: Tensor, inputs: Inputs, tiling: Tiling, lse: Tensor, *found: Tensor
) -> None:
    """Adds to the gradients `found`, of q, k and v, which are contiguous as all but the inputs are."""
    call, held = prepared(inputs, tiling)
    call.grad, call.delta, call.lse = addresses((grad, delta, lse))
    call.dq, call.dk, call.dv = addresses(found)
    library = kernels()
    assert library is not None
    library.tiled_backward(ctypes.byref(call))
    del held


def prepared(inputs: Inputs, tiling: Tiling) -> tuple[Call, tuple[Tensor | None, ...]]:
    """What every call says of its inputs, and the tensors that must live as long as it."""
    q, k, v = (contiguous_rows(x) for x in inputs[:3])
    lengths, queries = (None if x is None else x.contiguous() for x in (inputs[3], tiling.queries))
    keys, seen = tiling.keys.contiguous(), tiling.seen.contiguous()
    batch, heads, length, d = q.shape
    call = Call(
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
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        q_stride=strides(q),
        k_stride=strides(k),
        v_stride=strides(v),
        lengths=address(lengths),
        queries=address(queries),
        keys=keys.data_ptr(),
        seen=seen.data_ptr(),
    )
    return call, (q, k, v, lengths, queries, keys, seen)
