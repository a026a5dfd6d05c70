"""Calls of bucket.cpp. Shapes: q (b h n d), k (b h n d), v (b h n e), order and marks (b h r n)."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from subquad.ops.native.library import addresses, contiguous_rows, kernels, strides


class Sight(NamedTuple):
    """Who sees whom, but for the marks; as `bucket_attention` has it."""

    size: int
    causal: bool
    band: bool
    alone: bool
    repeats: bool


class Call(ctypes.Structure):
    """`Bucketed` of kernels.h, field by field."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "length")),
        *((name, c_int32) for name in ("d", "e", "rounds", "size", "threads")),
        *((name, c_int32) for name in ("causal", "band", "alone", "repeats")),
        ("scale", c_float),
        *((name, c_void_p) for name in "qkv"),
        *((f"{name}_stride", c_int64 * 3) for name in "qkv"),
        *((name, c_void_p) for name in ("order", "marks", "out", "lse", "grad", "dq", "dk", "dv")),
    ]


def forward(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, marks: Tensor, sight: Sight
) -> tuple[Tensor, Tensor]:
    """Outputs (b h n e), and the logs of the sums of weights (b h n)."""
    call, held = prepared(q, k, v, order, marks, sight)
    out, lse = torch.zeros(v.shape), torch.empty(v.shape[:3])
    call.out, call.lse = addresses((out, lse))
    library = kernels()
    assert library is not None
    library.bucketed(ctypes.byref(call))
    del held
    return out, lse


def backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    order: Tensor,
    marks: Tensor,
    sight: Sight,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    call, held = prepared(q, k, v, order, marks, sight)
    grad = grad.contiguous()
    dq, dk, dv = (torch.zeros(x.shape) for x in (q, k, v))
    call.grad, call.out, call.lse, call.dq, call.dk, call.dv = addresses((grad, out, lse, dq, dk, dv))
    library = kernels()
    assert library is not None
    library.bucketed_backward(ctypes.byref(call))
    del held
    return dq, dk, dv


def prepared(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, marks: Tensor, sight: Sight
) -> tuple[Call, tuple[Tensor, ...]]:
    """What every call says of its inputs, and the tensors that must live as long as it."""
    q, k, v = (contiguous_rows(x) for x in (q, k, v))
    order, marks = order.contiguous(), marks.to(torch.int32).contiguous()
    batch, heads, length, d = q.shape
    call = Call(
        batch=batch,
        heads=heads,
        length=length,
        d=d,
        e=v.shape[3],
        rounds=order.shape[2],
        threads=torch.get_num_threads(),
        **sight._asdict(),
        scale=d**-0.5,
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        q_stride=strides(q),
        k_stride=strides(k),
        v_stride=strides(v),
        order=order.data_ptr(),
        marks=marks.data_ptr(),
    )
    return call, (q, k, v, order, marks)
