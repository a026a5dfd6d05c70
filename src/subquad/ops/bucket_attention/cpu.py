"""Buckets by bucket.cpp: on the CPU, in float32."""

from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.bucket_attention import BucketCall, BucketResult, Visibility
from subquad.ops.native.library import KernelCall, rows, why_not_float32
from subquad.ops.shared.allocation import empty_result


class Bucketed(KernelCall):
    """The struct of kernels.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "length")),
        *((name, c_int32) for name in ("d", "e", "rounds", "size", "threads")),
        *((name, c_int32) for name in Visibility._fields[1:]),
        ("scale", c_float),
        *rows("q", "k", "v"),
        *((name, c_void_p) for name in ("order", "labels", "out", "lse", "grad", "dq", "dk", "dv")),
    )


def refuses(call: BucketCall) -> str | None:
    return why_not_float32(call.q, call.k, call.v)


def forward(call: BucketCall) -> BucketResult:
    out, lse = empty_result(call.v).zero_(), call.v.new_empty(call.v.shape[:3])
    kernel_call = bucket_kernel_call(call)
    kernel_call.point(out=out, lse=lse)
    kernel_call.run("bucketed")
    return BucketResult(out, lse)


def backward(grad: Tensor, call: BucketCall, result: BucketResult) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (empty_result(x).zero_() for x in (call.q, call.k, call.v))
    kernel_call = bucket_kernel_call(call)
    kernel_call.point(grad=grad, out=result.out, lse=result.lse, dq=dq, dk=dk, dv=dv)
    kernel_call.run("bucketed_backward")
    return dq, dk, dv


def bucket_kernel_call(call: BucketCall) -> Bucketed:
    """The fields that forward and backward share."""
    q, k, v, order, labels, visibility = call
    batch, heads, length, d = q.shape
    kernel_call = Bucketed(
        batch=batch,
        heads=heads,
        length=length,
        d=d,
        e=v.shape[3],
        rounds=order.shape[2],
        threads=torch.get_num_threads(),
        **visibility._asdict(),
        scale=d**-0.5,
    )
    kernel_call.tokens(q=q, k=k, v=v)
    kernel_call.point(order=order, labels=labels)
    return kernel_call
