"""In PyTorch, for any device and precision: by chunks of matrix products, in float32 at least."""

from torch import Tensor

from subquad.ops.recurrence import RecurrenceCall, RecurrenceResult, blocks, decay, delta_rule, rows
from subquad.ops.recurrence.rows import Gradients, RecurrenceInputs


def refuses(call: RecurrenceCall) -> None:
    """It takes every call."""


def forward(call: RecurrenceCall) -> RecurrenceResult:
    return blocks.forward(call, advance)


def backward(grads: tuple[Tensor, Tensor], call: RecurrenceCall, raw: Tensor) -> Gradients:
    return blocks.backward(grads, call, raw, advance, advance_backward)


def advance(block: RecurrenceCall) -> RecurrenceResult:
    q, k, v, log_decay, beta = rows.preprocess(block.tokens, block.fusion)
    if beta is None:
        raw, state = decay.advance(q, k, v, log_decay, state=block.state)
    else:
        raw, state = delta_rule.advance(q, k, v, beta, log_decay, state=block.state)
    return RecurrenceResult(rows.postprocess(raw, block.fusion), raw, state)


def advance_backward(grads: tuple[Tensor, Tensor], block: RecurrenceCall, raw: Tensor) -> Gradients:
    """The gradients of a block, and of the state before it."""
    (grad, grad_state), (tokens, state, fusion, *_) = grads, block
    dscale, dgate = grad.new_empty(0), grad.new_empty(0)
    if fusion.rms_norm_eps:
        grad, dscale, dgate = rows.postprocess_backward(grad, raw, fusion)
    q, k, v, log_decay, beta = rows.preprocess(tokens, fusion)
    if beta is None:
        dq, dk, dv, dlog_decay, dstate = decay.backward(grad, grad_state, q, k, v, log_decay, state=state)
        dbeta = None
    else:
        dq, dk, dv, dbeta, dlog_decay, dstate = delta_rule.backward(
            grad, grad_state, q, k, v, beta, log_decay, state=state
        )
    dtokens = rows.preprocess_backward(RecurrenceInputs(dq, dk, dv, dlog_decay, dbeta), tokens, fusion)
    return Gradients(dtokens, dstate, dscale, dgate)
