"""Decays by channel by Triton kernels: three launches forward and seven backward, whatever the length."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from subquad.ops.recurrence.decay import Matrix, Values
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.ops.recurrence.triton import WIDEST_HEADS
from subquad.ops.recurrence.triton_launches import SCAN, Launches, inputs
from subquad.ops.triton.configs import Config, Configs, Family

PARTS = {"write": "BE", "recall": "BZ", "read_channels": "BD"}  # what programs may share


def forward(tokens: RecurrenceInputs, state: Matrix, *, dtype: torch.dtype) -> tuple[Values, Matrix]:
    """Outputs in that dtype, and the last state."""
    run = Launches.of(FAMILY.configs, tokens, by_channel=True)
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
    """Gradients of what `forward` takes, those of q, k and v in that dtype."""
    q, k, v, log_decay, _ = tokens
    run = Launches.of(FAMILY.configs, tokens, by_channel=True)
    states, _ = run.states(k, v, state, backwards=False)
    gradients, dstate = run.states(q, grad, grad_state, backwards=True)
    dv = run.read(k, q, grad, gradients, dtype, turned=False, backwards=True)
    dq, dk, flow = run.read_channels(grad, q, k, v, states, gradients, dtype, learnt=learnt)
    return RecurrenceInputs(dq, dk, dv, flow.sum_to_size(log_decay.shape), None), dstate


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    if kernel == "scan":
        yield SCAN
        return
    for C in (32, 16) if dtype == torch.bfloat16 else (16,):
        for size in (128, 64, 32):
            if size // 2 < max(width, 32):
                for stages in (2, 1):
                    for warps in (4, 8):
                        yield Config({"C": C, PARTS[kernel]: size}, warps, stages)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    if width > WIDEST_HEADS[dtype]:
        return
    tokens, state = inputs(dtype, width, channels=width)
    yield partial(forward, tokens, state, dtype=dtype)
    for learnt in (False, True):
        yield partial(backward, tokens.v, state, tokens, state, learnt=learnt, dtype=state.dtype)


FAMILY = Family(Configs(Path(__file__).with_name("triton_channels.json"), candidates), calls)
