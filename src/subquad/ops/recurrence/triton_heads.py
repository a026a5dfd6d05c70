"""Decays a head by Triton kernels: three launches forward and seven backward, whatever the length."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from subquad.ops.recurrence import triton_channels
from subquad.ops.recurrence.decay import Matrix, Values
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.ops.recurrence.triton import WIDEST_HEADS
from subquad.ops.recurrence.triton_launches import SCAN, Launches, inputs
from subquad.ops.triton.configs import Config, Configs, Family


def forward(tokens: RecurrenceInputs, state: Matrix, *, dtype: torch.dtype) -> tuple[Values, Matrix]:
    """Outputs in that dtype, and the last state."""
    run = Launches.of(FAMILY.configs, tokens, by_channel=False)
    return run.forward(tokens, state, dtype)


def backward(
    grad: Values,
    grad_state: Matrix,
    tokens: RecurrenceInputs,
    state: Matrix,
    *,
    learnt: bool,
    dtype: torch.dtype,
) -> tuple[RecurrenceInputs, Matrix]:
    """Gradients of what `forward` takes, those of q, k and v in that dtype.

    Decays that are learnt are taken for those of their channels, all alike.
    """
    if learnt:
        return triton_channels.backward(grad, grad_state, tokens, state, learnt=True, dtype=dtype)
    q, k, v, log_decay, _ = tokens
    run = Launches.of(FAMILY.configs, tokens, by_channel=False)
    states, _ = run.states(k, v, state, backwards=False)
    gradients, dstate = run.states(q, grad, grad_state, backwards=True)
    dq = run.read(grad, v, k, states, dtype, turned=True, backwards=False)
    dk = run.read(v, grad, q, gradients, dtype, turned=True, backwards=True)
    dv = run.read(k, q, grad, gradients, dtype, turned=False, backwards=True)
    return RecurrenceInputs(dq, dk, dv, state.new_zeros(1).expand(log_decay.shape), None), dstate


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    if kernel == "scan":
        yield SCAN
        return
    part, warps_first = ("BE", (4, 8)) if kernel == "write" else ("BZ", (8, 4))
    chunks = (64, 32) if dtype == torch.bfloat16 and architecture == 90 else (32, 16)
    for C in chunks:
        for size in (128, 64, 32):
            if size // 2 < max(width, 32):
                for stages in (2, 1):
                    for warps in warps_first:
                        yield Config({"C": C, part: size}, warps, stages)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    if width > WIDEST_HEADS[dtype]:
        return
    for shared in (False, True):
        tokens, state = inputs(dtype, width, channels=1, shared=shared)
        yield partial(forward, tokens, state, dtype=dtype)
        yield partial(backward, tokens.v, state, tokens, state, learnt=False, dtype=state.dtype)


FAMILY = Family(Configs(Path(__file__).with_name("triton_heads.json"), candidates), calls)
