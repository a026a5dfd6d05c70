"""Windows by window.cpp: on the CPU, in float32 and half precision; sums and lse are float32."""

from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.native.library import PRECISIONS, KernelCall, rows, why_not_half
from subquad.ops.shared.allocation import empty_result
from subquad.ops.window_attention import WindowCall, WindowResult


class Window(KernelCall):
    """The struct of kernels.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "length", "left", "right")),
        *((name, c_int32) for name in ("d", "e", "threads", "dtype")),
        ("scale", c_float),
        *rows("q", "k", "v"),
        *((name, c_void_p) for name in ("lengths", "out", "lse", "grad", "grad_lse", "dq", "dk", "dv")),
    )


def refuses(call: WindowCall) -> str | None:
    return why_not_half(call.q, call.k, call.v)


def forward(call: WindowCall) -> WindowResult:
    out, lse = empty_result(call.v), call.v.new_empty(call.v.shape[:3], dtype=torch.float32)
    kernel_call = window_kernel_call(call)
    kernel_call.point(out=out, lse=lse)
    kernel_call.run("window")
    return WindowResult(out, lse)


def backward(grad: WindowResult, call: WindowCall, result: WindowResult) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, *_ = call
    dq, dk, dv = (
        empty_result(q),
        *(empty_result(x, dtype=torch.float32).zero_() for x in (k, v)),
    )  # which are added to
    kernel_call = window_kernel_call(call)
    kernel_call.point(grad=grad.out, grad_lse=grad.lse, out=result.out, lse=result.lse)
    kernel_call.point(dq=dq, dk=dk, dv=dv)
    kernel_call.run("window_backward")
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def window_kernel_call(call: WindowCall) -> Window:
    """The fields that forward and backward share."""
    q, k, v, lengths, left, right = call
    batch, heads, length, d = q.shape
    kernel_call = Window(
        batch=batch,
        heads=heads,
        length=length,
        left=left,
        right=right,
        d=d,
        e=v.shape[3],
        threads=torch.get_num_threads(),
        dtype=PRECISIONS[q.dtype],
        scale=d**-0.5,
    )
    kernel_call.tokens(q=q, k=k, v=v)
    kernel_call.point(lengths=lengths)
    return kernel_call
