"""Calls of bucket.cpp. Shapes: q (b h n d), k (b h n d), v (b h n e), order and marks (b h r n)."""

from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from subquad.ops.allocation import empty_result
from subquad.ops.native.library import Call, rows


class Sight(NamedTuple):
    """Who sees whom, but for the marks; as `bucket_attention` has it."""

    size: int
    causal: bool
    band: bool
    alone: bool
    repeats: bool


class Bucketed(Call):
    """The struct of kernels.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "length")),
        *((name, c_int32) for name in ("d", "e", "rounds", "size", "threads")),
        *((name, c_int32) for name in ("causal", "band", "alone", "repeats")),
        ("scale", c_float),
        *rows("q", "k", "v"),
        *((name, c_void_p) for name in ("order", "marks", "out", "lse", "grad", "dq", "dk", "dv")),
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, marks: Tensor, sight: Sight
) -> tuple[Tensor, Tensor]:
    """Outputs (b h n e), and the logs of the sums of weights (b h n)."""
    call = prepared(q, k, v, order, marks, sight)
    out, lse = empty_result(v).zero_(), v.new_empty(v.shape[:3])
    call.point(out=out, lse=lse)
    call.run("bucketed")
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
    call = prepared(q, k, v, order, marks, sight)
    dq, dk, dv = (empty_result(x).zero_() for x in (q, k, v))
    call.point(grad=grad, out=out, lse=lse, dq=dq, dk=dk, dv=dv)
    call.run("bucketed_backward")
    return dq, dk, dv


def prepared(q: Tensor, k: Tensor, v: Tensor, order: Tensor, marks: Tensor, sight: Sight) -> Bucketed:
    """What every call says of its inputs."""
    batch, heads, length, d = q.shape
    call = Bucketed(
        batch=batch,
        heads=heads,
        length=length,
        d=d,
        e=v.shape[3],
        rounds=order.shape[2],
        threads=torch.get_num_threads(),
        **sight._asdict(),
        scale=d**-0.5,
    )
    call.tokens(q=q, k=k, v=v)
    call.point(order=order, marks=marks.to(torch.int32))
    return call
