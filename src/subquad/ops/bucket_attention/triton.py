"""Triton kernels for CUDA, in float32 and half precision; `triton_buckets.py` launches them."""

from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor

from subquad.ops.bucket_attention import BucketCall, BucketResult
from subquad.ops.triton.availability import MOST_HEADS, why_not

MAX_WIDTH = 128  # numbers of a head, which a program holds whole


def refuses(call: BucketCall) -> str | None:
    if max(call.q.shape[3], call.v.shape[3]) > MAX_WIDTH:
        return f"it takes heads of at most {MAX_WIDTH} numbers: more heads, each narrower, would be served"
    if call.q.shape[0] * call.q.shape[1] > MOST_HEADS:
        return f"it takes at most {MOST_HEADS} heads in all: split the batch"
    return why_not(*call[:3])


def forward(call: BucketCall) -> BucketResult:
    return launches().forward(call)


def backward(grad: Tensor, call: BucketCall, result: BucketResult) -> tuple[Tensor, Tensor, Tensor]:
    return launches().backward(grad, call, result)


@cache
def launches() -> Any:
    """The module that needs Triton, and is loaded when it is first used."""
    return import_module("subquad.ops.bucket_attention.triton_buckets")
