"""One token without gradients, of any rule, in one launch."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from subquad.ops.recurrence.decay import Matrix, Values
from subquad.ops.recurrence.rows import Fusion, RecurrenceInputs
from subquad.ops.recurrence.triton import WIDEST_HEADS
from subquad.ops.recurrence.triton_launches import inputs
from subquad.ops.recurrence.triton_rows import Changes, gate_of, turns_of
from subquad.ops.recurrence.triton_step_kernel import recurrent_step
from subquad.ops.triton.configs import Config, Configs, Family
from subquad.ops.triton.launch import launch, side_by_side, tokens
from subquad.ops.triton.products import block


def forward(
    inputs_of_token: RecurrenceInputs, state: Matrix, fusion: Fusion, *, in_place: bool = False
) -> tuple[Values, Matrix]:
    """The output, and the state after the token."""
    q, k, v, log_decay, beta = inputs_of_token
    (batch, heads, _, D), E = q.shape, v.shape[3]
    q, k, v = (side_by_side(x) for x in (q, k, v))
    log_decay, turns = log_decay.expand(batch, heads, 1, -1), turns_of(fusion, q)
    out, state = torch.empty(v.shape, dtype=v.dtype, device=v.device), state.contiguous()
    last = state if in_place else torch.empty_like(state)
    rates, scale, gate = (
        q if beta is None else beta,
        q if fusion.scale is None else fusion.scale,
        gate_of(fusion, v),
    )
    decays = log_decay, *log_decay.stride()
    launch(
        recurrent_step,
        (batch * heads,),
        *(*map(tokens, (q, k, v)), decays, tokens(rates), (turns, *turns.stride()[:3]), scale, tokens(gate)),
        *(state, last, out),
        *(fusion.q_scale, fusion.qk_l2norm_eps, fusion.gate_normalizer, fusion.rms_norm_eps, heads),
        config=FAMILY.configs.find(recurrent_step, max(q, v, key=lambda x: x.shape[3])),
        **{"D": D, "E": E, "BD": block(D), "BE": block(E), **Changes.of(fusion)._asdict()},
        CHANNELS=log_decay.shape[3] > 1,
        DELTA=beta is not None,
        NORMED=bool(fusion.rms_norm_eps),
        GATED=bool(fusion.rms_norm_eps) and fusion.gate is not None,
    )
    return out, last


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    for warps in (4, 8):
        yield Config({}, warps, stages=1)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    """As retention, gated linear attention and the gated delta rule have it."""
    if width > WIDEST_HEADS[dtype]:
        return
    (q, k, v, logits, _), state = inputs(dtype, width, channels=width, n=1)
    head, scale = torch.empty(*q.shape[:3], 1, device="meta"), torch.empty(width, device="meta")
    normed = Fusion(rms_norm_eps=1e-5, scale=scale, gate=v)
    turned = normed._replace(q_scale=0.5, rotary=torch.empty(1, 1, width, device="meta"))
    yield partial(forward, RecurrenceInputs(q, k, v, head, None), state, turned)
    yield partial(
        forward,
        RecurrenceInputs(q, k, v, logits, None),
        state,
        normed._replace(q_scale=0.5, gate_normalizer=16.0),
    )
    unit = normed._replace(qk_l2norm_eps=1e-6, swish_values=True)
    yield partial(forward, RecurrenceInputs(q, k, v, head, head), state, unit)


FAMILY = Family(Configs(Path(__file__).with_name("triton_steps.json"), candidates), calls)
