"""Calls of window.cpp. Shapes: q (b h t d), k (b h t d), v (b h t e), lengths (b).

q, k, v, outputs and their gradients are of one dtype, float32 or half precision; all else is float32.
"""

from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.allocation import empty_result
from subquad.ops.native.library import PRECISIONS, Call, rows


class Window(Call):
    """The struct of kernels.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "length", "left", "right")),
        *((name, c_int32) for name in ("d", "e", "threads", "given")),
        ("scale", c_float),
        *rows("q", "k", "v"),
        *((name, c_void_p) for name in ("lengths", "out", "lse", "grad", "grad_lse", "dq", "dk", "dv")),
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, *, left: int, right: int
) -> tuple[Tensor, Tensor]:
    """Outputs (b h t e), and the logs of the sums of weights (b h t)."""
    call = prepared(q, k, v, lengths, left=left, right=right)
    out, lse = empty_result(v), v.new_empty(v.shape[:3], dtype=torch.float32)
    call.point(out=out, lse=lse)
    call.run("window")
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
    call = prepared(q, k, v, lengths, left=left, right=right)
    dq, dk, dv = (
        empty_result(q),
        *(empty_result(x, dtype=torch.float32).zero_() for x in (k, v)),
    )  # which are added to
    call.point(grad=grad, grad_lse=grad_lse, out=out, lse=lse, dq=dq, dk=dk, dv=dv)
    call.run("window_backward")
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def prepared(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, *, left: int, right: int) -> Window:
    """What every call says of its inputs."""
    batch, heads, length, d = q.shape
    call = Window(
        batch=batch,
        heads=heads,
        length=length,
        left=left,
        right=right,
        d=d,
        e=v.shape[3],
        threads=torch.get_num_threads(),
        given=PRECISIONS[q.dtype],
        scale=d**-0.5,
    )
    call.tokens(q=q, k=k, v=v)
    call.point(lengths=lengths)
    return call
