"""A block of a recurrence by chunks of matrix products, in PyTorch: forward, and its gradients."""

from torch import Tensor

from subquad.ops.recurrence import RecurrenceCall, RecurrenceResult, decay, delta_rule, rows
from subquad.ops.recurrence.chain import Chain
from subquad.ops.recurrence.rows import Gradients, RecurrenceInputs


def advance(block: RecurrenceCall, *, chain: Chain) -> RecurrenceResult:
    tokens = q, k, v, log_decay, beta = rows.preprocess(block.tokens, block.fusion)
    if q.shape[2] == 1:
        raw, state = one_token(tokens, block.state, in_place=block.in_place)
    elif beta is None:
        raw, state = decay.advance(q, k, v, log_decay, state=block.state, chain=chain)
    else:
        raw, state = delta_rule.advance(q, k, v, beta, log_decay, state=block.state, chain=chain)
    return RecurrenceResult(rows.postprocess(raw, block.fusion), raw, state)


def one_token(tokens: RecurrenceInputs, state: Tensor, *, in_place: bool) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written."""
    q, k, v, log_decay, beta = tokens
    whole = log_decay.exp().mT
    state = state.mul_(whole) if in_place else state * whole
    if beta is not None:
        v = beta * (v - k @ state)
    return q @ state.addcmul_(k.mT, v), state


def backward(grads: tuple[Tensor, Tensor], block: RecurrenceCall, raw: Tensor, *, chain: Chain) -> Gradients:
    """The gradients of a block, and of the state before it."""
    (grad, grad_state), (tokens, state, fusion, *_) = grads, block
    dscale, dgate = grad.new_empty(0), grad.new_empty(0)
    if fusion.rms_norm_eps:
        grad, dscale, dgate = rows.postprocess_backward(grad, raw, fusion)
    q, k, v, log_decay, beta = rows.preprocess(tokens, fusion)
    if beta is None:
        dq, dk, dv, dlog_decay, dstate = decay.backward(
            grad, grad_state, q, k, v, log_decay, state=state, chain=chain
        )
        dbeta = None
    else:
        dq, dk, dv, dbeta, dlog_decay, dstate = delta_rule.backward(
            grad, grad_state, q, k, v, beta, log_decay, state=state, chain=chain
        )
    dtokens = rows.preprocess_backward(RecurrenceInputs(dq, dk, dv, dlog_decay, dbeta), tokens, fusion)
    return Gradients(dtokens, dstate, dscale, dgate)
