"""A recurrence a block of tokens at a time: what is of half precision is widened block by block.

The backward pass does a block again, from the state before it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from subquad.ops.recurrence import RecurrenceCall, RecurrenceResult
from subquad.ops.recurrence.rows import Gradients, RecurrenceInputs
from subquad.ops.shared.allocation import empty_result
from subquad.ops.shared.precision import wide

BLOCK = 512  # tokens whose chunks run side by side; measured best on CPUs, forward and back, of 256 to 4,096

Forward = Callable[[RecurrenceCall], RecurrenceResult]
Backward = Callable[[tuple[Tensor, Tensor], RecurrenceCall, Tensor], Gradients]


def forward(call: RecurrenceCall, one: Forward, *, size: int = 0) -> RecurrenceResult:
    """By `one`, which takes a block of `size` tokens, or `BLOCK`, in float32 at least."""
    v, keeps_raw = call.tokens.v, call.needs_grad and bool(call.fusion.rms_norm_eps)
    out, last = empty_result(v), call.state
    raw = empty_result(v, *(v.shape if keeps_raw else (0,)), dtype=last.dtype)
    for here in blocks(v.shape[2], size or BLOCK):
        out[:, :, here], before_norm, last = one(block(call, here, last))
        if keeps_raw:
            raw[:, :, here] = before_norm
    return RecurrenceResult(out, raw, last.clone() if last is call.state and not call.in_place else last)


def backward(
    grads: tuple[Tensor, Tensor],
    call: RecurrenceCall,
    raw: Tensor,
    one: Forward,
    one_back: Backward,
    *,
    size: int = 0,
) -> Gradients:
    """By `one` and its gradients `one_back`."""
    (grad, dstate), scale = grads, call.fusion.scale
    cuts = blocks(call.tokens.q.shape[2], size or BLOCK)
    states = [call.state]
    for here in cuts[:-1]:
        states.append(one(block(call, here, states[-1])).state)
    like = call.tokens.q
    whole = [like.new_empty(0) if x is None else empty_result(x) for x in (*call.tokens, call.fusion.gate)]
    dscale = like.new_zeros(0) if scale is None else torch.zeros_like(scale)
    for here, state in zip(cuts[::-1], states[::-1], strict=True):
        kept = raw[:, :, here] if call.fusion.rms_norm_eps else raw
        part = one_back((wide(grad[:, :, here])[0], dstate), block(call, here, state), kept)
        for everywhere, these in zip(whole, (*part.tokens, part.gate), strict=True):
            if these is not None and everywhere.dim() > 1:
                everywhere[:, :, here] = these
        dstate = part.state
        dscale += part.scale
    *tokens, dgate = whole
    return Gradients(RecurrenceInputs(*tokens), dstate, dscale, dgate)


def blocks(length: int, size: int) -> list[slice]:
    """The tokens of each block; no tokens are one empty block."""
    return [slice(start, start + size) for start in range(0, max(length, 1), size)]


def block(call: RecurrenceCall, here: slice, state: Tensor) -> RecurrenceCall:
    """The tokens of a block, and what is done to their rows, in float32 at least."""
    tokens = call.tokens.each(lambda x: wide(x[:, :, here])[0])
    rotary, gate = call.fusion.rotary, call.fusion.gate
    fusion = call.fusion._replace(
        rotary=None if rotary is None else rotary[:, here],
        gate=None if gate is None else wide(gate[:, :, here])[0],
    )
    return call._replace(tokens=tokens, state=state, fusion=fusion)
