"""Linear attention whose features are exponentials, by Triton kernels: what is launched, and in which order.

    forward    key_sums     of each segment        reads k, v
               merge        of all                 reads and writes sums
               averages                            reads q; writes outputs and log sums
    backward   merge                               averages are made again from the sums
               query_gradients                     reads q, outputs and their gradients; writes dq
               query_sums   of each segment        reads q and gradients
               scan         of all
               key_gradients                       reads k, v; writes dk, dv

Features reach no memory. As in `triton_features.py`, launches are as many for any length, and the same inputs
give the same bits.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subquad.ops.linear_attention import FeatureKind, LinearCall, LinearResult, triton_features
from subquad.ops.linear_attention import triton_exponential_kernels as kernels
from subquad.ops.linear_attention.sums import ShiftedSums
from subquad.ops.linear_attention.triton import WIDEST_FLOAT32
from subquad.ops.linear_attention.triton_inputs import PARTS, SEGMENT, Inputs, directions, side_by_side
from subquad.ops.triton.configs import Config, Configs, Family
from subquad.ops.triton.launch import ceil_div, launch, tokens
from subquad.ops.triton.products import block, products_of


def forward(call: LinearCall) -> LinearResult:
    inputs = Inputs(call, CONFIGS)
    q, k, v, valid = inputs.all
    (b, h, t), f, e, parts = call.q.shape[:3], call.features, call.v.shape[3], inputs.segments(inputs.keys)
    own = ShiftedSums(inputs.new(b, h, parts, f, e), inputs.new(b, h, parts, f), inputs.new(b, h, parts, f))
    W, half = directions(call)
    inputs.run(kernels.key_sums, k, v, W, valid, *own, half, n=inputs.keys, by="segment", split="BF")
    A, L, sums = merged(inputs, own, parts)
    out, log_sums = call.v.new_empty(b, h, t, e), inputs.new(b, h, t)
    inputs.run(kernels.averages, q, W, valid, A, L, tokens(out), log_sums, n=t)
    return LinearResult(out, log_sums, sums, SEGMENT)


def backward(grad: Tensor, call: LinearCall, result: LinearResult) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(call, CONFIGS)
    q, k, v, valid = inputs.all
    W, half = directions(call)
    dq, dk, dv = (x.new_empty(x.shape) for x in call[:3])
    A, L, _ = merged(inputs, result.sums, 1)
    g, out, n = tokens(side_by_side(grad)), tokens(result.out), inputs.queries
    log_sums, dtotals = result.denominator, torch.empty_like(result.denominator)
    inputs.run(kernels.query_gradients, q, W, valid, A, L, out, g, log_sums, dtotals, tokens(dq), n=n)
    parts = triton_features.Segments(inputs, n)
    own = q, W, valid, L, g, log_sums, dtotals, parts.own
    inputs.run(kernels.query_sums, *own, n=n, by="segment", split="BF")
    _, (dS, dz) = parts.scanned(None, reverse=False)
    inputs.run(kernels.key_gradients, k, v, W, valid, L, dS, dz, tokens(dk), tokens(dv), half, n=inputs.keys)
    return dq, dk, dv


def merged(inputs: Inputs, sums: ShiftedSums, parts: int) -> tuple[Tensor, Tensor, ShiftedSums]:
    """Averages and log sums of all keys, and their sums under common shifts."""
    b, h, f, e = inputs.b, inputs.h, inputs.features, inputs.e
    after = ShiftedSums(inputs.new(b, h, f, e), inputs.new(b, h, f, 1), inputs.new(b, h, 1, f))
    L = inputs.new(b, h, f)
    A = torch.empty_like(after.S, dtype=products_of(inputs.v.dtype).saved)
    config = inputs.configs.find(kernels.merge, inputs.v).within(BF=block(f))
    grid = ceil_div(f, config.blocks["BF"]), b * h
    launch(kernels.merge, grid, *sums, A, L, *after, parts, f, config=config, E=e, BE=block(e))
    return A, L, after


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    """As of features; a program has whole rows of queries, keys and values."""
    if kernel == "scan":
        yield from triton_features.candidates(kernel, dtype, width, architecture)
    elif kernel == "merge":
        yield Config({"BF": 16, "PARTS": PARTS}, warps=4, stages=1)
    else:
        for C, BF in ((64, 64), (64, 32), (32, 64), (32, 32), (32, 16), (16, 32), (16, 16)):
            if triton_features.fits(C, BF, dtype, width):
                for warps, stages in ((4, 2), (8, 2), (4, 1), (8, 1)):
                    yield Config({"C": C, "BF": BF, "BE": 128}, warps, stages)


def examples(dtype: torch.dtype, width: int, *, causal: bool) -> Iterator[LinearCall]:
    """Of FAVOR with 256 features; logarithms are given in float32 alone."""
    if dtype == torch.float32 and width > WIDEST_FLOAT32:
        return
    v = torch.empty(2, 4, 512, width, dtype=dtype, device="meta")
    W, valid = v.new_empty(256, width, dtype=torch.float32), v.new_empty(2, 512, dtype=torch.bool)
    yield LinearCall(v, v, v, W, valid, FeatureKind.FAVOR, causal)
    if dtype == torch.float32:
        logs = v.new_empty(2, 4, 512, 256)
        yield LinearCall(logs, logs, v, None, valid, FeatureKind.LOGS, causal)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    """Forward and back."""
    for call in examples(dtype, width, causal=False):
        yield lambda call=call: backward(call.v, call, forward(call))


CONFIGS = Configs(Path(__file__).with_suffix(".json"), candidates)
FAMILY = Family(CONFIGS, calls)
