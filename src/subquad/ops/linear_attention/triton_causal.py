"""Causal linear attention whose features are exponentials, by Triton kernels: what is launched, and when.

    forward    key_sums, scan_keys              averages and log sums before each segment of tokens
               query_features, key_features     once, to be read by every tile of a segment
               causal_averages
    backward   key_sums, scan_keys, query_features, key_features      all of it again
               query_sums, scan_queries         the mirror of the first two, from behind
               query_gradients, key_gradients, value_gradients

As in `triton_features.py`, launches are as many for any length, and the same inputs give the same bits.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subquad.ops.linear_attention import LinearCall, LinearResult, triton_exponentials
from subquad.ops.linear_attention import triton_causal_gradients as gradients
from subquad.ops.linear_attention import triton_causal_kernels as kernels
from subquad.ops.linear_attention.sums import ShiftedSums
from subquad.ops.linear_attention.triton_exponential_kernels import key_sums
from subquad.ops.linear_attention.triton_inputs import SEGMENT, Inputs, directions, side_by_side
from subquad.ops.triton.configs import Config, Configs, Family
from subquad.ops.triton.launch import Kernel, ceil_div, launch, tokens
from subquad.ops.triton.products import block, products_of


class Keys(NamedTuple):
    """What queries need of keys, and features of either under their shifts."""

    A: Tensor
    L: Tensor
    query_u: Tensor
    key_u: Tensor
    query_tops: Tensor
    key_tops: Tensor


def forward(call: LinearCall) -> LinearResult:
    inputs = Inputs(call, CONFIGS)
    q, _, v, valid = inputs.all
    keys, after = keys_of(call, inputs)
    (b, h, n), e = call.q.shape[:3], call.v.shape[3]
    out, log_sums = call.v.new_empty(b, h, n, e), inputs.new(b, h, n)
    features = tokens(keys.query_u), tokens(keys.key_u), keys.query_tops, keys.key_tops
    W, _ = directions(call)
    inputs.run(kernels.causal_averages, q, v, W, valid, keys.A, keys.L, *features, tokens(out), log_sums, n=n)
    return LinearResult(out, log_sums, after, SEGMENT)


def backward(grad: Tensor, call: LinearCall, result: LinearResult) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(call, CONFIGS)
    q, k, v, valid = inputs.all
    W, half = directions(call)
    dq, dk, dv = (x.new_empty(x.shape) for x in call[:3])
    keys, _ = keys_of(call, inputs)
    A, L, query_u, key_u, *tops = keys
    n, g, out = inputs.keys, tokens(side_by_side(grad)), tokens(result.out)
    log_sums, dtotals, own = result.denominator, torch.empty_like(result.denominator), segment_sums(inputs)
    of_queries = out, g, log_sums, dtotals
    inputs.run(kernels.query_sums, q, W, valid, *of_queries, *own, n=n, by="segment", split="BF")
    G, behind_w, shifts = torch.empty_like(own.S, dtype=A.dtype), *map(torch.empty_like, own[1:])
    sweep(inputs, kernels.scan_queries, *own, G, behind_w, shifts)
    query_u, key_u = tokens(query_u), tokens(key_u)
    own = A, L, key_u, *tops, g, log_sums, dtotals
    inputs.run(gradients.query_gradients, q, v, W, valid, *own, tokens(dq), n=n)
    own = G, behind_w, shifts, query_u, *tops, g, log_sums, dtotals
    inputs.run(gradients.key_gradients, k, v, W, valid, *own, tokens(dk), half, n=n)
    own = G, shifts, query_u, key_u, *tops, g, log_sums
    inputs.run(gradients.value_gradients, k, W, valid, *own, tokens(dv), half, n=n)
    return dq, dk, dv


def keys_of(call: LinearCall, inputs: Inputs) -> tuple[Keys, ShiftedSums]:
    """What queries need of keys, and the sums after the last one."""
    q, k, v, valid = inputs.all
    b, h, n, f, e = inputs.b, inputs.h, inputs.keys, inputs.features, inputs.e
    saved, own = products_of(call.v.dtype).saved, segment_sums(inputs)
    W, half = directions(call)
    inputs.run(key_sums, k, v, W, valid, *own, half, n=n, by="segment", split="BF")
    after = ShiftedSums(inputs.new(b, h, f, e), inputs.new(b, h, f, 1), inputs.new(b, h, 1, f))
    before = after if call.before is None else [x.contiguous() for x in call.before]
    A, L = torch.empty_like(own.S, dtype=saved), torch.empty_like(own.z)
    sweep(inputs, kernels.scan_keys, *own, *before, A, L, *after)
    query_u, key_u = (torch.empty(b, h, n, f, dtype=saved, device=call.v.device) for _ in range(2))
    query_tops, key_tops = inputs.new(b, h, n), inputs.new(b, h, n)
    inputs.run(kernels.query_features, q, W, valid, tokens(query_u), query_tops, n=n)
    inputs.run(kernels.key_features, k, W, valid, tokens(key_u), key_tops, half, n=n)
    return Keys(A, L, query_u, key_u, query_tops, key_tops), after


def segment_sums(inputs: Inputs) -> ShiftedSums:
    """Room for the sums of each segment, and their shifts."""
    sizes = inputs.b, inputs.h, inputs.segments(inputs.keys), inputs.features
    return ShiftedSums(inputs.new(*sizes, inputs.e), inputs.new(*sizes), inputs.new(*sizes))


def sweep(inputs: Inputs, kernel: Kernel, *tensors: Tensor) -> None:
    """From segment to segment, a program for some features of a head."""
    config = CONFIGS.find(kernel, inputs.v).within(BF=block(inputs.features))
    grid = ceil_div(inputs.features, config.blocks["BF"]), inputs.b * inputs.h
    sizes, flags = (inputs.segments(inputs.keys), inputs.features), {"E": inputs.e, "BE": block(inputs.e)}
    launch(kernel, grid, *tensors, *sizes, config=config, INITIAL=inputs.constants["INITIAL"], **flags)


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    """As of the bidirectional form."""
    if kernel.startswith("scan"):
        yield Config({"BF": 16}, warps=4, stages=1)
    else:
        yield from triton_exponentials.candidates(kernel, dtype, width, architecture)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    """Forward and back, as of the bidirectional form."""
    for call in triton_exponentials.examples(dtype, width, causal=True):
        yield lambda call=call: backward(call.v, call, forward(call))


CONFIGS = Configs(Path(__file__).with_suffix(".json"), candidates)
FAMILY = Family(CONFIGS, calls)
