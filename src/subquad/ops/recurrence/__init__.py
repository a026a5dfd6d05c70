"""The gated recurrences: an operator for decays and the delta rule, and for what is done to rows around them.

Its backward pass does a block of tokens again: it keeps the inputs and the outputs before their norm, and
nothing else, so that memory is O(n d).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from subquad.ops.backends import Backends
from subquad.ops.recurrence.decay import LogDecays, Matrix, Queries, Values
from subquad.ops.recurrence.delta_rule import Betas
from subquad.ops.recurrence.rows import Fusion, Gradients, RecurrenceInputs
from subquad.ops.shared.operator import call_op, differentiable_once, followed, learnt
from subquad.ops.shared.precision import widened
from subquad.ops.shared.shapes import require_dtype, require_matching_inputs, require_shape

NOTHING = Fusion()


class RecurrenceCall(NamedTuple):
    """What a backend is called with. A token with k = 0 and log_decay = 0 leaves no trace."""

    tokens: RecurrenceInputs
    state: Matrix
    fusion: Fusion
    needs_grad: bool
    needs_decay_grad: bool = True  # without, the gradients of decays may be zeros
    in_place: bool = False  # whether the state after the last token may be written over the one before


def why_not_one_decay(call: RecurrenceCall) -> str | None:
    """Why kernels of a delta rule with one decay a head do not serve a call."""
    if call.tokens.beta is None or call.tokens.log_decay.shape[3] == 1:
        return None
    return "its delta rule takes one decay for all channels of a token, not one for each"


class RecurrenceResult(NamedTuple):
    """Outputs, and the state after the last token. The backward pass is given `raw` in its place."""

    out: Values
    raw: Tensor  # outputs before the norm, if that needs gradients, and otherwise nothing
    state: Matrix


BACKENDS = Backends[RecurrenceCall](__name__, "cpu", "triton", "fla", "parallel", "reference")


def decayed_product(
    q: Queries,
    k: Queries,
    v: Values,
    log_decay: LogDecays,
    *,
    state: Matrix,
    fusion: Fusion = NOTHING,
    in_place: bool = False,
) -> tuple[Values, Matrix]:
    """The outputs, and the state after the last token: see `decay.py`.

    Raises `ValueError` for shapes or dtypes that do not fit.

    in_place: the state after may be written over the one before, where no gradients flow
    """
    require_fit(q, k, v, log_decay, state, fusion)
    return recur(RecurrenceInputs(q, k, v, log_decay, None), state, fusion, in_place)


def delta_product(
    q: Queries,
    k: Queries,
    v: Values,
    beta: Betas,
    log_decay: LogDecays,
    *,
    state: Matrix,
    fusion: Fusion = NOTHING,
    in_place: bool = False,
) -> tuple[Values, Matrix]:
    """The same by the delta rule: see `delta_rule.py`."""
    require_fit(q, k, v, log_decay, state, fusion)
    require_shape("rates", beta, *q.shape[:3], 1)
    require_dtype("rates", beta, q.dtype, widened(q.dtype))
    return recur(RecurrenceInputs(q, k, v, log_decay, beta), state, fusion, in_place)


def require_fit(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, fusion: Fusion) -> None:
    """Raise `ValueError` for what does not fit together; rows may share decays and turns, heads decays."""
    require_matching_inputs(q, k, v)
    require_shape("keys", k, *q.shape)
    wider = widened(q.dtype)
    require_shape("the state's numbers", state, *q.shape[:2], q.shape[3], v.shape[3])
    require_dtype("the state's numbers", state, wider)
    if fusion.gate is not None:
        require_shape("gates", fusion.gate, *v.shape)
        require_dtype("gates", fusion.gate, q.dtype)
    if fusion.scale is not None:
        require_shape("scales", fusion.scale, v.shape[3])
        require_dtype("scales", fusion.scale, wider)
    if fusion.rotary is not None:
        rows_of_turns = 1 if fusion.rotary.shape[0] == 1 else q.shape[0]
        require_shape("turns", fusion.rotary, rows_of_turns, *q.shape[2:])
        require_dtype("turns", fusion.rotary, wider)
    require_dtype("decays", log_decay, q.dtype, wider)
    batch, heads, length, channels = log_decay.shape
    if batch not in (1, q.shape[0]) or heads not in (1, q.shape[1]) or length != q.shape[2]:
        raise ValueError(f"decays of shape {tuple(log_decay.shape)} do not fit queries of {tuple(q.shape)}")
    widths = (q.shape[3],) if fusion.gate_normalizer else (1, q.shape[3])  # logits are one for each channel
    if channels not in widths:
        raise ValueError(
            f"decays of {channels} channels do not fit keys of {q.shape[3]}: give one for each channel"
            f"{'' if fusion.gate_normalizer else ', or one for all'}"
        )


def recur(tokens: RecurrenceInputs, state: Matrix, fusion: Fusion, in_place: bool) -> tuple[Values, Matrix]:
    *numbers, rotary, scale, gate = fusion
    tensors = (*tokens, state, scale, gate)
    if not followed(*tensors):
        call = RecurrenceCall(tokens, state, fusion, needs_grad=False, in_place=in_place)
        out, _, last = run_forward(call)[1]
        return out, last
    out, _, last, _ = call_op(_forward, *tokens, state, *numbers, rotary, scale, gate, learnt(*tensors))
    return out, last


def run_forward(call: RecurrenceCall) -> tuple[int, RecurrenceResult]:
    """By the first backend that takes it, and its index; the last, whichever is asked for, takes no token."""
    if call.tokens.q.shape[2]:
        return BACKENDS.run("forward", call)
    index = len(BACKENDS.loaded) - 1
    return index, BACKENDS[index].forward(call)


@torch.library.custom_op("subquad::recurrence", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor,
    q_scale: float,
    qk_l2norm_eps: float,
    swish_values: bool,
    gate_normalizer: float,
    rms_norm_eps: float,
    rotary: Tensor | None,
    scale: Tensor | None,
    gate: Tensor | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, what they were before the norm, the last state, and the backend's index."""
    numbers = (q_scale, qk_l2norm_eps, swish_values, gate_normalizer, rms_norm_eps)
    fusion = Fusion(*numbers, rotary, scale, gate)
    made = RecurrenceCall(RecurrenceInputs(q, k, v, log_decay, beta), state, fusion, needs_grad)
    index, (out, raw, last) = run_forward(made)
    return out, raw, last, torch.tensor(index)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None, state: Tensor, *fusion: Any):
    *_, rms_norm_eps, _, _, _, needs_grad = fusion
    raw = v.new_empty(v.shape if needs_grad and rms_norm_eps else 0, dtype=state.dtype)
    return v.new_empty(v.shape), raw, state.new_empty(state.shape), torch.empty((), dtype=torch.int64)


@torch.library.custom_op("subquad::recurrence_backward", mutates_args=())
def _backward(
    grad: Tensor,
    grad_state: Tensor,
    raw: Tensor,
    index: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor,
    rotary: Tensor | None,
    scale: Tensor | None,
    gate: Tensor | None,
    q_scale: float,
    qk_l2norm_eps: float,
    swish_values: bool,
    gate_normalizer: float,
    rms_norm_eps: float,
    needs_decay_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_decay, beta, state, scale and gate: empty tensors for absent inputs."""
    numbers = (q_scale, qk_l2norm_eps, swish_values, gate_normalizer, rms_norm_eps)
    fusion = Fusion(*numbers, rotary, scale, gate)
    made = RecurrenceCall(RecurrenceInputs(q, k, v, log_decay, beta), state, fusion, True, needs_decay_grad)
    gradients: Gradients = BACKENDS[index].backward((grad, grad_state), made, raw)
    dq, dk, dv, dlog_decay, dbeta = gradients.tokens
    return dq, dk, dv, dlog_decay, q.new_empty(0) if dbeta is None else dbeta, *gradients[1:]


@_backward.register_fake
def _(grad: Tensor, grad_state: Tensor, raw: Tensor, index: Tensor, *inputs: Any):
    q, k, v, log_decay, beta, state, _, scale, gate, *_ = inputs
    like = (q, k, v, log_decay, beta, state, scale, gate)
    return tuple(q.new_empty(0) if x is None else x.new_empty(x.shape) for x in like)


def _remember(ctx, inputs, output) -> None:
    *tensors, ctx.numbers, rotary, scale, gate = *inputs[:6], inputs[6:11], *inputs[11:14]
    ctx.save_for_backward(output[1], output[3], *tensors, rotary, scale, gate)
    ctx.set_materialize_grads(False)  # zeros for what only the backward pass reads


def _gradients(
    ctx, grad: Tensor | None, _: None, grad_state: Tensor | None, __: None
) -> tuple[Tensor | None, ...]:
    needed, saved = ctx.needs_input_grad, ctx.saved_tensors
    v, state = saved[4], saved[7]
    grad = torch.zeros_like(v) if grad is None else grad
    grad_state = torch.zeros_like(state) if grad_state is None else grad_state
    gradients = call_op(_backward, grad, grad_state, *saved, *ctx.numbers, needed[3])
    *tokens, state, scale, gate = (
        x if wanted else None for x, wanted in zip(gradients, (*needed[:6], *needed[12:14]), strict=True)
    )
    return *tokens, state, *[None] * 6, scale, gate, None


_forward.register_autograd(_gradients, setup_context=_remember)
differentiable_once(_backward)
