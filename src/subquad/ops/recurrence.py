"""The gated recurrences: an operator for decays and the delta rule, and for what is done to rows around them.

Its backward pass does a block of tokens again: it keeps the inputs and the outputs before their norm, and
nothing else, so that memory is O(n d), and `torch.compile` sees one node. On the CPU in float32 compiled
kernels do the work, where there are any (`native/decay.cpp`, `native/delta.cpp`); otherwise it is done in
PyTorch by `ops/decay.py` and `ops/delta_rule.py`, a block at a time, in float32 at least.
"""

from typing import Any

import torch
from torch import Tensor

from subquad.ops import decay, delta_rule, flash_linear, native, rows
from subquad.ops.allocation import empty_result
from subquad.ops.decay import LogDecays, Matrix, Queries, Values
from subquad.ops.delta_rule import Betas
from subquad.ops.native import recurrence as kernels
from subquad.ops.operator import call_op, differentiable_once
from subquad.ops.precision import wide, widened
from subquad.ops.rows import Around, Pulled, Tokens
from subquad.ops.shapes import require_dtype, require_shape, require_together

BLOCK = 512  # tokens whose chunks run side by side; measured best on CPUs, forward and back, of 256 to 4,096
NOTHING = Around()


def decayed_product(
    q: Queries, k: Queries, v: Values, log_decay: LogDecays, *, state: Matrix, around: Around = NOTHING
) -> tuple[Values, Matrix]:
    """The outputs, and the state after the last token: see `ops/decay.py`.

    A token with k = 0 and log_decay = 0 leaves no trace. Raises `ValueError` for shapes or dtypes that do not
    fit.
    """
    require_fit(q, k, v, log_decay, state, around)
    channels = log_decay.shape[3]
    widths = (q.shape[3],) if around.root else (1, q.shape[3])  # logits are one for each channel
    if channels not in widths:
        raise ValueError(
            f"decays of {channels} channels do not fit keys of {q.shape[3]}: give one for each channel"
            f"{'' if around.root else ', or one for all'}"
        )
    return recur(Tokens(q, k, v, log_decay, None), state, around)


def delta_product(
    q: Queries,
    k: Queries,
    v: Values,
    beta: Betas,
    log_decay: LogDecays,
    *,
    state: Matrix,
    around: Around = NOTHING,
) -> tuple[Values, Matrix]:
    """The same by the delta rule: see `ops/delta_rule.py`; decays are one for all channels of a token."""
    require_fit(q, k, v, log_decay, state, around)
    if log_decay.shape[3] != 1:
        raise ValueError(
            f"the delta rule takes one decay for each token and head, not {log_decay.shape[3]}: give them "
            f"shape {(*log_decay.shape[:3], 1)}, or take `decayed_product`, which has one for each channel"
        )
    require_shape("rates", beta, *q.shape[:3], 1)
    require_dtype("rates", beta, q.dtype, widened(q.dtype))
    return recur(Tokens(q, k, v, log_decay, beta), state, around)


def require_fit(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, around: Around) -> None:
    """Raise `ValueError` for what does not fit together; rows may share decays and turns, heads decays."""
    require_together(q, k, v)
    require_shape("keys", k, *q.shape)
    wider = widened(q.dtype)
    require_shape("the state's numbers", state, *q.shape[:2], q.shape[3], v.shape[3])
    require_dtype("the state's numbers", state, wider)
    if around.gate is not None:
        require_shape("gates", around.gate, *v.shape)
        require_dtype("gates", around.gate, q.dtype)
    if around.scale is not None:
        require_shape("scales", around.scale, v.shape[3])
        require_dtype("scales", around.scale, wider)
    if around.turn is not None:
        rows_of_turn = 1 if around.turn.shape[0] == 1 else q.shape[0]
        require_shape("turns", around.turn, rows_of_turn, *q.shape[2:])
        require_dtype("turns", around.turn, wider)
    require_dtype("decays", log_decay, q.dtype, wider)
    batch, heads, length, _ = log_decay.shape
    if batch not in (1, q.shape[0]) or heads not in (1, q.shape[1]) or length != q.shape[2]:
        raise ValueError(f"decays of shape {tuple(log_decay.shape)} do not fit queries of {tuple(q.shape)}")


def recur(tokens: Tokens, state: Matrix, around: Around) -> tuple[Values, Matrix]:
    if flash_linear.serves(tokens.q, given=tokens.q.dtype):
        return by_flash_linear(tokens, state, around)
    learnt = (*tokens, state, around.scale, around.gate)
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learnt)
    numbers = (around.q_scale, around.unit, around.swish_values, around.root, around.norm)
    given = (*tokens, state, around.turn, around.scale, around.gate, *numbers, learns)
    out, _, last = call_op(_forward, *given)
    return out, last


def by_flash_linear(tokens: Tokens, state: Matrix, around: Around) -> tuple[Values, Matrix]:
    given = tokens.q.dtype
    q, k, v, log_decay, beta = rows.ready(in_float32(tokens), around)
    if beta is None:
        out, last = flash_linear.decayed_product(q, k, v, log_decay, state=state, given=given)
    else:
        out, last = flash_linear.delta_product(q, k, v, beta, log_decay, state=state, given=given)
    return rows.finished(out, around).to(given), last


@torch.library.custom_op("subquad::recurrence", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor,
    turn: Tensor | None,
    scale: Tensor | None,
    gate: Tensor | None,
    q_scale: float,
    unit: float,
    swish_values: bool,
    root: float,
    norm: float,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, what they were before the norm if that `learns`, and the last state."""
    around = Around(q_scale, unit, swish_values, root, norm, turn, scale, gate)
    tokens = Tokens(q, k, v, log_decay, beta)
    if kernels.takes(tokens, state, around):
        return kernels.forward(tokens, state, around, learns=learns)
    out = empty_result(v)
    raw = empty_result(v, *(v.shape if learns and norm else (0,)), dtype=state.dtype)
    last = state
    for here in blocks(q.shape[2]):
        found, before, last = advance(*at(here, tokens, around), last)
        out[:, :, here] = found
        if learns and norm:
            raw[:, :, here] = before
    return out, raw, last.clone() if last is state else last


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None, state: Tensor, *around: Any):
    *_, norm, learns = around
    raw = v.new_empty(v.shape if learns and norm else 0, dtype=state.dtype)
    return v.new_empty(v.shape), raw, state.new_empty(state.shape)


@torch.library.custom_op("subquad::recurrence_backward", mutates_args=())
def _backward(
    grad: Tensor,
    grad_state: Tensor,
    raw: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor,
    turn: Tensor | None,
    scale: Tensor | None,
    gate: Tensor | None,
    q_scale: float,
    unit: float,
    swish_values: bool,
    root: float,
    norm: float,
    decays: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_decay, beta, state, scale and gate: no numbers for what there was not."""
    around = Around(q_scale, unit, swish_values, root, norm, turn, scale, gate)
    tokens = Tokens(q, k, v, log_decay, beta)
    if native.usable(grad, grad_state, *tokens, state, turn, scale, gate):
        found = kernels.backward(grad, grad_state, raw, tokens, state, around, decays=decays)
        return together(found)
    before = [state]
    for here in blocks(q.shape[2])[:-1]:
        before.append(advance(*at(here, tokens, around), before[-1])[2])
    whole = [q.new_empty(0) if x is None else empty_result(x) for x in (*tokens, gate)]
    of_scale = q.new_zeros(0) if scale is None else torch.zeros_like(scale)
    for here, S in zip(blocks(q.shape[2])[::-1], before[::-1], strict=True):
        seen, kept = wide(grad[:, :, here])[0], raw[:, :, here] if norm else raw
        found = pull_back(*at(here, tokens, around), S, seen, grad_state, kept, decays=decays)
        for everywhere, these in zip(whole, (*found.tokens, found.gate), strict=True):
            if these is not None and everywhere.dim() > 1:
                everywhere[:, :, here] = these
        grad_state = found.state
        of_scale += found.scale
    *pulled, of_gate = whole
    return together(Pulled(Tokens(*pulled), grad_state, of_scale, of_gate))


@_backward.register_fake
def _(grad: Tensor, grad_state: Tensor, raw: Tensor, *inputs: Any):
    q, k, v, log_decay, beta, state, _, scale, gate, *_ = inputs
    like = (q, k, v, log_decay, beta, state, scale, gate)
    return tuple(q.new_empty(0) if x is None else x.new_empty(x.shape) for x in like)


def _remember(ctx, inputs, output) -> None:
    *tensors, ctx.q_scale, ctx.unit, ctx.swish_values, ctx.root, ctx.norm, _ = inputs
    ctx.save_for_backward(output[1], *tensors)


def _pull_back(ctx, grad: Tensor, _: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    numbers = (ctx.q_scale, ctx.unit, ctx.swish_values, ctx.root, ctx.norm)
    found = call_op(_backward, grad, grad_state, *ctx.saved_tensors, *numbers, ctx.needs_input_grad[3])
    *tokens, state, scale, gate = (
        x if needed else None
        for x, needed in zip(found, (*ctx.needs_input_grad[:6], *ctx.needs_input_grad[7:9]), strict=True)
    )
    return *tokens, state, None, scale, gate, *[None] * 6


_forward.register_autograd(_pull_back, setup_context=_remember)
differentiable_once(_backward)


def blocks(length: int) -> list[slice]:
    """The tokens of each block; no tokens are one empty block."""
    return [slice(start, start + BLOCK) for start in range(0, max(length, 1), BLOCK)]


def at(here: slice, tokens: Tokens, around: Around) -> tuple[Tokens, Around]:
    """Of the tokens of a block, and around them."""
    turn = None if around.turn is None else around.turn[:, here]
    gate = None if around.gate is None else wide(around.gate[:, :, here])[0]
    return in_float32(tokens, here), around._replace(turn=turn, gate=gate)


def in_float32(tokens: Tokens, here: slice = slice(None)) -> Tokens:
    """Or in float64, where they are."""
    given = (tokens.q, tokens.k, tokens.v, tokens.log_decay)
    q, k, v, log_decay = wide(*(x[:, :, here] for x in given))
    return Tokens(q, k, v, log_decay, None if tokens.beta is None else wide(tokens.beta[:, :, here])[0])


def together(found: Pulled) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the operator gives them: no numbers for beta where there was none."""
    q, k, v, log_decay, beta = found.tokens
    return q, k, v, log_decay, q.new_empty(0) if beta is None else beta, found.state, found.scale, found.gate


def advance(tokens: Tokens, around: Around, state: Matrix) -> tuple[Values, Values, Matrix]:
    """Outputs of a block, what they were before the norm, and the state after it."""
    if kernels.takes(tokens, state, around):
        return kernels.forward(tokens, state, around, learns=True)
    q, k, v, log_decay, beta = rows.ready(tokens, around)
    if beta is None:
        raw, state = decay.advance(q, k, v, log_decay, state=state)
    else:
        raw, state = delta_rule.advance(q, k, v, beta, log_decay, state=state)
    return rows.finished(raw, around), raw, state


def pull_back(
    tokens: Tokens,
    around: Around,
    state: Matrix,
    grad: Values,
    grad_state: Matrix,
    raw: Tensor,
    *,
    decays: bool,
) -> Pulled:
    """The gradients of a block, and of the state before it."""
    if native.usable(grad, grad_state, *tokens, state, around.turn, around.scale, around.gate):
        return kernels.backward(grad, grad_state, raw, tokens, state, around, decays=decays)
    of_scale, of_gate = grad.new_empty(0), grad.new_empty(0)
    if around.norm:
        grad, of_scale, of_gate = rows.pull_finished(grad, raw, around)
    q, k, v, log_decay, beta = rows.ready(tokens, around)
    if beta is None:
        dq, dk, dv, dlog_decay, of_state = decay.pull_back(grad, grad_state, q, k, v, log_decay, state=state)
        dbeta = None
    else:
        dq, dk, dv, dbeta, dlog_decay, of_state = delta_rule.pull_back(
            grad, grad_state, q, k, v, beta, log_decay, state=state
        )
    pulled = rows.pull_ready(Tokens(dq, dk, dv, dlog_decay, dbeta), tokens, around)
    return Pulled(pulled, of_state, of_scale, of_gate)
