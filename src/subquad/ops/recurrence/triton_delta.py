"""The delta rule by Triton kernels: three launches forward and six backward, whatever the length.

The backward pass makes u and the states again, and keeps both in the precision of products.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from subquad.ops.recurrence.decay import Matrix, Queries, Values
from subquad.ops.recurrence.delta_rule import Betas
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.ops.recurrence.triton import WIDEST_HEADS
from subquad.ops.recurrence.triton_delta_backward import advance_back, of_keys, of_queries, solve_back
from subquad.ops.recurrence.triton_delta_kernels import advance, solve
from subquad.ops.recurrence.triton_launches import Launches, inputs
from subquad.ops.triton.configs import Config, Configs, Family
from subquad.ops.triton.launch import Kernel, architecture_of, launch, tokens
from subquad.ops.triton.products import block


def forward(tokens: RecurrenceInputs, state: Matrix, *, dtype: torch.dtype) -> tuple[Values, Matrix]:
    """Outputs in that dtype, and the last state."""
    run = Chunks.of(tokens, state)
    u, states, last = run.values()
    return run.fading.read(tokens.q, tokens.k, u, states, dtype, turned=False, backwards=False), last


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
    run = Chunks.of(tokens, state)
    inverses = run.each_chunk(run.fading.size, run.fading.size)
    u, states, _ = run.values(inverses)
    solved, gradients, dstate = run.right_sides(grad, grad_state, inverses)
    dq, dk, dv, dbeta, flow = run.gradients(grad, u, states, solved, gradients, dtype, learnt=learnt)
    return RecurrenceInputs(dq, dk, dv, flow.sum_to_size(tokens.log_decay.shape), dbeta), dstate


class Chunks(NamedTuple):
    """A call, whose chunks are a block each of the matrix that fades."""

    q: Queries
    k: Queries
    v: Values
    beta: Betas
    state: Matrix
    fading: Launches

    @classmethod
    def of(cls, tokens: RecurrenceInputs, state: Matrix) -> "Chunks":
        q, k, v, _, beta = tokens
        assert beta is not None
        fading = Launches.of(FAMILY.configs, tokens, by_channel=False)
        size = chunk(q.dtype, fading.like.shape[3], architecture_of(q.device))
        fading = fading._replace(size=size, blocks=triton.cdiv(q.shape[2], size))
        return cls(q, k, v, beta, state.contiguous(), fading)

    def values(self, inverses: Tensor | None = None) -> tuple[Tensor, Tensor, Matrix]:
        """u, the state before each chunk, and the last; the chunks' inverses are kept where there is room."""
        _, k, v, beta, state, fading = self
        U, W = state.new_empty(v.shape), k.new_empty(k.shape, dtype=fading.saved)
        u, states, last = torch.empty_like(U, dtype=fading.saved), self.each_chunk(), torch.empty_like(state)
        room, keep = U if inverses is None else inverses, inverses is not None
        levels = fading.size.bit_length() - 1
        given = tokens(k), tokens(v), tokens(beta), fading.decays
        self.launch(solve, *given, U, W, room, LEVELS=levels, KEEP=keep)
        self.launch(advance, tokens(k), fading.decays, U, W, state, u, states, last)
        return u, states, last

    def right_sides(
        self, grad: Tensor, grad_state: Matrix, inverses: Tensor
    ) -> tuple[Tensor, Tensor, Matrix]:
        """Gradients of the systems' right sides, of the state after each chunk, and of the first state."""
        q, k, v, beta, state, fading = self
        U, W = state.new_empty(v.shape), k.new_empty(k.shape, dtype=fading.saved)
        solved, gradients = torch.empty_like(U, dtype=fading.saved), self.each_chunk()
        after, dstate = grad_state.contiguous(), torch.empty_like(state)
        self.launch(solve_back, tokens(q), tokens(k), fading.decays, tokens(grad), inverses, U, W)
        given = *map(tokens, (q, k, beta)), fading.decays, tokens(grad)
        self.launch(advance_back, *given, U, W, after, solved, gradients, dstate)
        return solved, gradients, dstate

    def gradients(
        self,
        grad: Tensor,
        u: Tensor,
        states: Tensor,
        solved: Tensor,
        gradients: Tensor,
        dtype: torch.dtype,
        *,
        learnt: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of q, k and v in that dtype, of beta, and the flow through decays, if these are learnt."""
        q, k, v, beta, state, fading = self
        dq, dk, dv = (torch.empty(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
        dbeta, flow = state.new_empty(beta.shape), state.new_zeros(1).expand(beta.shape)
        flow = torch.empty_like(dbeta) if learnt else flow
        given = u, tokens(beta), fading.decays, tokens(grad), solved, states
        results = dq, dv, dbeta, flow
        self.launch(of_queries, *map(tokens, (q, k, v)), *given, *results, LEARNT=learnt)
        self.launch(of_keys, tokens(q), tokens(k), *given, gradients, dk, flow, LEARNT=learnt)
        return dq, dk, dv, dbeta, flow

    def launch(self, kernel: Kernel, *inputs: Any, **constants: Any) -> None:
        """A program for each chunk or, where it goes from chunk to chunk, for each part of the values."""
        (batch, heads, n, D), E = self.q.shape, self.v.shape[3]
        config = self.fading.configs.find(kernel, self.fading.like)
        BD, BE = (min(config.blocks.get(name, 128), tile(x)) for name, x in (("BD", D), ("BE", E)))
        side_by_side = triton.cdiv(E, BE) if kernel in (advance, advance_back) else self.fading.blocks
        sizes = self.fading.constants(D=D, E=E, BD=BD, BE=BE, C=self.fading.size)
        grid, kind = (side_by_side, batch * heads), self.fading.kind
        launch(kernel, grid, *inputs, n, heads, config=config, **{**sizes, "KIND": kind, **constants})

    def each_chunk(self, *shape: int) -> Tensor:
        """Room for something at each, for a state if nothing else is said."""
        batch, heads, *state = self.state.shape
        return self.state.new_empty(
            batch * heads, self.fading.blocks, *(shape or state), dtype=self.fading.saved
        )


def tile(width: int) -> int:
    """Numbers of a key or value that a program takes at most.

    With tiles of 16, `solve` in bfloat16 as Triton 3.6.0 compiles it faults on an H200, at some of its calls.
    """
    return max(32, block(width))


def chunk(dtype: torch.dtype, width: int, architecture: int) -> int:
    """Tokens whose system is solved at once: all kernels of a call agree on it."""
    if dtype != torch.bfloat16:
        return 16
    return 64 if width <= 64 and architecture >= 90 else 32


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    options = [{}]
    if kernel == "recall":
        sizes = dict.fromkeys((chunk(dtype, width, architecture), 16))
        options = [{"C": C, "BZ": BZ} for C in sizes for BZ in (128, 64, 32)]
    elif kernel in ("advance", "advance_back"):  # long chains: the more programs, the better
        options = [{"BE": 32}, {"BE": 16}]
    elif kernel in ("of_queries", "of_keys"):
        options = [{"BD": size, "BE": size} for size in (64, 32)]
    for blocks in options:
        for stages in (2, 1):
            for warps in (4, 8):
                yield Config(blocks, warps, stages)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    if width > WIDEST_HEADS[dtype]:
        return
    for shared in (False, True):
        tokens, state = inputs(dtype, width, channels=1, shared=shared)
        tokens = tokens._replace(beta=torch.empty(tokens.log_decay.shape, device="meta"))
        yield partial(forward, tokens, state, dtype=dtype)
        yield partial(backward, tokens.v, state, tokens, state, learnt=not shared, dtype=state.dtype)


FAMILY = Family(Configs(Path(__file__).with_name("triton_delta.json"), candidates), calls)
