"""Triton kernels for CUDA, of the modules `triton_*.py`: those of a rule, and those of what is done to rows.

Nothing but the inputs, and the outputs before their norm, is kept for the backward pass. The number of
launches does not grow with the length. Results repeat bit by bit: no sum depends on which program ends first.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from subquad.ops.recurrence import RecurrenceCall, RecurrenceResult, why_not_one_decay
from subquad.ops.recurrence.rows import Gradients
from subquad.ops.triton.availability import why_not

# the widest heads whose kernels take no more registers than there are: `python -m subquad.ops.triton`
WIDEST_HEADS = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64}


def refuses(call: RecurrenceCall) -> str | None:
    (q, k, v, log_decay, beta), state, fusion, *_ = call
    if reason := why_not(q, k, v, fusion.gate):
        return reason
    others = (log_decay, beta, state, fusion.scale, fusion.rotary)
    if any(x is not None and x.device != q.device for x in others):
        return f"it takes inputs that are all on {q.device}"
    if 0 in (*q.shape, *v.shape):
        return "it takes one token or more"
    if reason := why_not_one_decay(call):
        return reason
    width, widest = max(q.shape[3], v.shape[3]), WIDEST_HEADS[q.dtype]
    if width <= widest:
        return None
    remedy = "take half precision or" if width <= max(WIDEST_HEADS.values()) else "take"
    return f"it takes {widest} numbers of {q.dtype} a head, not {width}: {remedy} more, narrower heads"


def forward(call: RecurrenceCall) -> RecurrenceResult:
    (tokens, state, fusion, *_), rows, kernels = call, launcher("rows"), kernels_of(call)
    dtype, nothing = tokens.v.dtype, call.state.new_empty(0)
    if tokens.q.shape[2] == 1 and not call.needs_grad:
        out, last = launcher("steps").forward(tokens, state, fusion, in_place=call.in_place)
        return RecurrenceResult(out, nothing, last)
    tokens = rows.preprocess(tokens, fusion)
    if not fusion.rms_norm_eps:
        out, last = kernels.forward(tokens, state, dtype=dtype)
        return RecurrenceResult(out, nothing, last)
    raw, last = kernels.forward(tokens, state, dtype=state.dtype)
    return RecurrenceResult(rows.postprocess(raw, fusion, dtype), raw if call.needs_grad else nothing, last)


def backward(grads: tuple[Tensor, Tensor], call: RecurrenceCall, raw: Tensor) -> Gradients:
    (grad, grad_state), rows, kernels = grads, launcher("rows"), kernels_of(call)
    inputs, state, fusion, _, learnt, *_ = call
    dscale = dgate = state.new_empty(0)
    # of gradients on their way, for which float16 has not the range
    dtype = torch.bfloat16 if inputs.v.dtype == torch.bfloat16 else state.dtype
    if fusion.rms_norm_eps:
        grad, dscale, dgate = rows.postprocess_backward(grad, raw, fusion, dtype)
    tokens = rows.preprocess(inputs, fusion)
    grad = rows.side_by_side(grad)
    dtokens, dstate = kernels.backward(grad, grad_state, tokens, state, learnt=learnt, dtype=dtype)
    return Gradients(rows.preprocess_backward(dtokens, inputs, fusion), dstate, dscale, dgate)


def kernels_of(call: RecurrenceCall) -> Any:
    *_, log_decay, beta = call.tokens
    return launcher("delta" if beta is not None else "heads" if log_decay.shape[3] == 1 else "channels")


def launcher(name: str) -> Any:
    """A module that launches kernels: it loads Triton, and is therefore loaded where it serves."""
    return import_module(f"subquad.ops.recurrence.triton_{name}")
