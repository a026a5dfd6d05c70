"""Triton kernels for CUDA, in float32 and half precision; the modules `triton_*.py` hold and launch them."""

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from subquad.ops.linear_attention import FeatureKind, LinearCall, LinearResult
from subquad.ops.linear_attention.sums import ShiftedSums, Sums
from subquad.ops.triton.availability import MOST_HEADS, why_not

WIDEST = 128  # values of a head, which a program holds whole
WIDEST_FLOAT32 = 64  # the same of exponentials, which need more registers than there are


def refuses(call: LinearCall) -> str | None:
    makes_features = call.kind in (FeatureKind.ELU, FeatureKind.FAVOR)
    widths = call.v.shape[3], call.q.shape[3] if makes_features else 0
    if max(widths) > WIDEST:
        return f"it takes heads of at most {WIDEST} numbers: more heads, each narrower, would be served"
    if call.v.dtype == torch.float32 and call.kind.exponential and max(widths) > WIDEST_FLOAT32:
        return f"float32 is for heads of at most {WIDEST_FLOAT32} numbers here: take half precision"
    if call.q.shape[0] * call.q.shape[1] > MOST_HEADS:
        return f"it takes at most {MOST_HEADS} heads in all: split the batch"
    return why_not(*call[:3])


def forward(call: LinearCall) -> LinearResult:
    return kernels_of(call).forward(call)


def step(call: LinearCall) -> tuple[Tensor, Sums | ShiftedSums]:
    """The next tokens of a stream, without what a backward pass would need."""
    if call.k.shape[2] == 1:
        return kernel_module("triton_steps").one_token(call)
    result = forward(call)
    return result.out, result.sums if call.kind.exponential else Sums(result.sums.S, result.sums.z)


def backward(grad: Tensor, call: LinearCall, result: LinearResult) -> tuple[Tensor, Tensor, Tensor]:
    return kernels_of(call).backward(grad, call, result)


def kernels_of(call: LinearCall) -> Any:
    if not call.kind.exponential:
        return kernel_module("triton_features")
    return kernel_module("triton_causal" if call.causal else "triton_exponentials")


@cache
def kernel_module(module: str) -> Any:
    """A module with kernels: it needs Triton, and is loaded when it is first used."""
    return import_module(f"subquad.ops.linear_attention.{module}")
