"""Linear attention over features, given or elu + 1, by Triton kernels: what is launched, and in which order.

    forward    key_sums     of each segment            reads k, v
               scan         before each segment        reads and writes states
               averages                                reads q, k, v; writes outputs and denominators
    backward   key_sums, scan                          states are made again, not kept
               query_sums   the mirror of key_sums     reads q, outputs and their gradients
               scan         from behind
               query_gradients, key_gradients, value_gradients

The number of launches does not depend on the length, nothing is added atomically, and sums over parts are
added in one order: the same inputs give the same bits.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subquad.ops.linear_attention import FeatureKind, LinearCall, LinearResult
from subquad.ops.linear_attention import triton_feature_kernels as kernels
from subquad.ops.linear_attention.sums import ShiftedSums, Sums
from subquad.ops.linear_attention.triton_inputs import SEGMENT, Inputs, side_by_side
from subquad.ops.triton.configs import Config, Configs, Family
from subquad.ops.triton.launch import ceil_div, launch, tokens

State = tuple[Tensor, Tensor, int, int, int, int]  # S and z, and the strides of head and segment of either


def forward(call: LinearCall) -> LinearResult:
    inputs = Inputs(call, CONFIGS)
    states, last = key_states(inputs, call.before)
    (b, h, t), e = call.q.shape[:3], call.v.shape[3]
    out, denominator = call.v.new_empty(b, h, t, e), inputs.new(b, h, t)
    inputs.run(kernels.averages, *inputs.all, states, tokens(out), denominator, n=t, split="BE")
    shifts = denominator.new_zeros(b, h, 1, inputs.features)
    return LinearResult(out, denominator, ShiftedSums(*last, shifts), SEGMENT)


def backward(grad: Tensor, call: LinearCall, result: LinearResult) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(call, CONFIGS)
    dq, dk, dv = (x.new_empty(x.shape) for x in call[:3])
    q, k, _, valid = inputs.all
    g, totals, dtotals = tokens(side_by_side(grad)), result.denominator, torch.empty_like(result.denominator)
    states = key_states(inputs)[0] if call.causal else whole(Sums(result.sums.S, result.sums.z))
    sums, out, n = Segments(inputs, inputs.queries), tokens(result.out), inputs.queries
    own = q, out, g, valid, totals, dtotals, sums.own
    inputs.run(kernels.query_sums, *own, n=n, by="segment", split="BF")
    behind, _ = sums.scanned(None, reverse=True)
    of_all = g, totals, dtotals
    inputs.run(kernels.query_gradients, *inputs.all, states, *of_all, tokens(dq), n=n, split="BF")
    n = inputs.keys
    inputs.run(kernels.key_gradients, *inputs.all, behind, *of_all, tokens(dk), n=n, split="BF")
    inputs.run(kernels.value_gradients, q, k, valid, behind, g, totals, tokens(dv), n=n, split="BE")
    return dq, dk, dv


def key_states(inputs: Inputs, before: Sums | ShiftedSums | None = None) -> tuple[State, Sums]:
    """Sums before each segment, or of all keys, and those after the last key."""
    _, *keyed = inputs.all
    sums = Segments(inputs, inputs.keys)
    inputs.run(kernels.key_sums, *keyed, sums.own, n=inputs.keys, by="segment", split="BF")
    return sums.scanned(before, reverse=False)


class Segments:
    """The sums of each segment: S and z side by side, as `scan` takes them."""

    def __init__(self, inputs: Inputs, n: int) -> None:
        self.inputs, self.count, self.size = inputs, inputs.segments(n), inputs.features * inputs.e
        self.sums = inputs.new(inputs.b * inputs.h, self.count, self.size + inputs.features)
        self.own = self.state(self.sums)

    def state(self, sums: Tensor) -> State:
        strides = sums.stride(0), sums.stride(1)
        return sums[..., : self.size], sums[..., self.size :], *strides, *strides

    def scanned(self, before: Sums | ShiftedSums | None, *, reverse: bool) -> tuple[State, Sums]:
        """What precedes each segment, or follows it if `reverse`, or is all; and the sums after the last."""
        inputs, width = self.inputs, self.sums.shape[2]
        b, h, f, e = inputs.b, inputs.h, inputs.features, inputs.e
        states = torch.empty_like(self.sums) if inputs.causal else self.sums
        last = Sums(inputs.new(b, h, f, e), inputs.new(b, h, f, 1))
        S, z = last if before is None else (before.S.contiguous(), before.z.contiguous())
        config = inputs.configs.find(kernels.scan, inputs.v)
        grid = ceil_div(width, config.blocks["BLOCK"]), b * h
        sizes = self.count, self.size, width
        flags = {"INITIAL": before is not None, "CAUSAL": inputs.causal, "REVERSE": reverse}
        launch(kernels.scan, grid, self.sums, S, z, states, *last, *sizes, config=config, **flags)
        return self.state(states) if inputs.causal else whole(last), last


def whole(sums: Sums) -> State:
    """One state for all tokens."""
    return sums.S, sums.z, sums.S.stride(1), 0, sums.z.stride(1), 0


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    """Tiles of 64 tokens take Hopper's widest products; others need fewer registers."""
    if kernel == "scan":
        yield Config({"ROWS": 8, "BLOCK": 128}, warps=4, stages=1)
        return
    split_values = kernel in ("averages", "value_gradients")
    for C, BF in ((64, 64), (32, 64), (32, 32), (16, 64), (16, 32), (16, 16)):
        if fits(C, BF, dtype, width):
            for warps, stages in ((4, 2), (8, 2), (4, 1), (8, 1)):
                for BE in (128, 64, 32) if split_values else (128,):
                    yield Config({"C": C, "BF": BF, "BE": BE}, warps, stages)


def fits(C: int, BF: int, dtype: torch.dtype, width: int) -> bool:
    """Whether tiles of that many tokens and features are worth a try; in TF32 larger ones spill registers."""
    if dtype == torch.bfloat16:
        return True
    return C < 64 and (C * BF <= 1024 or dtype == torch.float16 or width < 128)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    """Forward and back: causal and not, with features made, and given in several blocks."""
    for kind, causal, features in (
        (FeatureKind.ELU, True, width),
        (FeatureKind.ELU, False, width),
        (FeatureKind.FEATURES, True, 256),
    ):
        q, k = (torch.empty(2, 4, 512, features, dtype=dtype, device="meta") for _ in "qk")
        v, valid = q.new_empty(2, 4, 512, width), q.new_empty(2, 512, dtype=torch.bool)
        call = LinearCall(q, k, v, None, valid, kind, causal)
        yield lambda call=call: backward(call.v, call, forward(call))


CONFIGS = Configs(Path(__file__).with_suffix(".json"), candidates)
FAMILY = Family(CONFIGS, calls)
