"""Calls of window.cpp. Shapes: q (b h t d), k (b h t d), v (b h t e), lengths (b)."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.native.library import address, addresses, contiguous_rows, kernels, strides


class Call(ctypes.Structure):
    """`Window` of kernels.h, field by field."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "length", "left", "right")),
        *((name, c_int32) for name in ("d", "e", "threads")),
        ("scale", c_float),
        *((name, c_void_p) for name in "qkv"),
        *((f"{name}_stride", c_int64 * 3) for name in "qkv"),
        *((name, c_void_p) for name in ("lengths", "out", "lse", "grad", "grad_lse", "dq", "dk", "dv")),
    ]


def forward(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, *, left: int, right: int
) -> tuple[Tensor, Tensor]:
    """Outputs (b h t e), and the logs of the sums of weights (b h t)."""
    call, held = prepared(q, k, v, lengths, left=left, right=right)
    out, lse = v.new_empty(v.shape), v.new_empty(v.shape[:3])
    call.out, call.lse = addresses((out, lse))
    library = kernels()
    assert library is not None
    library.window(ctypes.byref(call))
    del held
    return out, lse


def backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    out: Tensor,
    lse: Tensor,
    *,
    left: int,
    right: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    call, held = prepared(q, k, v, lengths, left=left, right=right)
    grad, out, lse = (x.contiguous() for x in (grad, out, lse))
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    call.grad, call.out, call.lse = addresses((grad, out, lse))
    call.grad_lse = address(grad_lse)
    dq = torch.empty(q.shape, dtype=q.dtype)
    dk, dv = torch.zeros(k.shape, dtype=k.dtype), torch.zeros(v.shape, dtype=v.dtype)
    call.dq, call.dk, call.dv = addresses((dq, dk, dv))
    library = kernels()
    assert library is not None
    library.window_backward(ctypes.byref(call))
    del held
    return dq, dk, dv


def prepared(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, *, left: int, right: int
) -> tuple[Call, tuple[Tensor | None, ...]]:
    """What every call says of its inputs, and the tensors that must live as long as it."""
    q, k, v = (contiguous_rows(x) for x in (q, k, v))
    lengths = None if lengths is None else lengths.contiguous()
    batch, heads, length, d = q.shape
    call = Call(
        batch=batch,
        heads=heads,
        length=length,
        left=left,
        right=right,
        d=d,
        e=v.shape[3],
        threads=torch.get_num_threads(),
        scale=d**-0.5,
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        q_stride=strides(q),
        k_stride=strides(k),
        v_stride=strides(v),
        lengths=address(lengths),
    )
    return call, (q, k, v, lengths)
