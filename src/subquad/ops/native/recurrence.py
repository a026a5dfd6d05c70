"""Calls of decay.cpp and delta.cpp. Shapes: q, k (b h t d), v (b h t e), beta (b h t 1), state (b h d e).

Decays broadcast: (#b #h t 1), one for all channels of a key, or (#b #h t d).
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.native.library import address, contiguous_rows, kernels, strides, usable
from subquad.ops.rows import Around, Pulled, Tokens

PRECISIONS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Precision` of half.h


class Call(ctypes.Structure):
    """`Recurrence` of kernels.h, field by field."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "length")),
        *((name, c_int32) for name in ("d", "e", "channels", "threads")),
        *((name, c_void_p) for name in ("q", "k", "v", "log_decay", "beta")),
        *((f"{name}_stride", c_int64 * 3) for name in ("q", "k", "v", "log_decay", "beta")),
        *((name, c_void_p) for name in ("S0", "S1", "out", "grad", "grad_S1")),
        *((name, c_void_p) for name in ("dq", "dk", "dv", "dlog_decay", "dbeta", "dS0")),
        *((name, c_float) for name in ("q_scale", "root", "unit", "norm")),
        ("swish_values", c_int32),
        *((name, c_void_p) for name in ("turn", "gate", "scale")),
        *((f"{name}_stride", c_int64 * 3) for name in ("turn", "gate")),
        *((name, c_void_p) for name in ("raw", "dgate", "dscale")),
        *((name, c_int32) for name in ("given", "given_decays")),
    ]


def takes(tokens: Tokens, state: Tensor, around: Around) -> bool:
    """Whether the kernels run forward on these: float32, or half precision for what is as wide as a token."""
    wide = (around.scale, around.turn, tokens.beta, None if by_channel(tokens) else tokens.log_decay)
    given = {x.dtype for x in (tokens.q, tokens.k, tokens.v, around.gate) if x is not None}
    known = len(given) == 1 and given <= PRECISIONS.keys() and tokens.log_decay.dtype in PRECISIONS
    return known and tokens.q.is_cpu and usable(state, *wide)


def by_channel(tokens: Tokens) -> bool:
    return tokens.log_decay.shape[3] > 1


def forward(
    tokens: Tokens,
    state: Tensor,
    around: Around,
    *,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (b h t e), what they were before the norm if that `learns`, and the state after the last token;
    with `beta` by the delta rule.
    """
    call, held = prepared(tokens, state, around)
    out, last = (torch.empty(x.shape, dtype=x.dtype) for x in (tokens.v, state))
    raw = last.new_empty(out.shape if learns and around.norm else 0)
    call.out, call.S1, call.raw = out.data_ptr(), last.data_ptr(), raw.data_ptr() or None
    run("decayed" if tokens.beta is None else "delta", call)
    del held
    return out, raw, last


def backward(
    grad: Tensor,
    grad_state: Tensor,
    raw: Tensor,
    tokens: Tokens,
    state: Tensor,
    around: Around,
    *,
    decays: bool,
) -> Pulled:
    """Gradients of tokens, state, scale and gate, from those of outputs and last state: no
    numbers for what there was not, nor for log_decay but if `decays`.
    """
    q, k, v, log_decay, beta = tokens
    call, held = prepared(tokens, state, around)
    grad, grad_state, raw = grad.contiguous(), grad_state.contiguous(), raw.contiguous()
    call.grad, call.grad_S1, call.raw = grad.data_ptr(), grad_state.data_ptr(), raw.data_ptr()
    given = (q, k, v, state, beta, around.gate)
    dq, dk, dv, dstate, dbeta, dgate = (q.new_empty(0 if x is None else x.shape) for x in given)
    dscale = q.new_empty(0 if around.scale is None else (*q.shape[:2], v.shape[3]))
    dlog_decay = q.new_zeros(1).expand(log_decay.shape)
    if decays:
        dlog_decay = q.new_empty(*q.shape[:3], call.channels)
        call.dlog_decay = dlog_decay.data_ptr()
    call.dq, call.dk, call.dv, call.dS0 = (x.data_ptr() for x in (dq, dk, dv, dstate))
    call.dbeta, call.dgate, call.dscale = (x.data_ptr() or None for x in (dbeta, dgate, dscale))
    run("decayed_backward" if beta is None else "delta_backward", call)
    del held
    if around.scale is not None:
        dscale = dscale.sum((0, 1))
    dlog_decay = dlog_decay.sum_to_size(log_decay.shape)
    return Pulled(Tokens(dq, dk, dv, dlog_decay, dbeta), dstate, dscale, dgate)


def run(name: str, call: Call) -> None:
    library = kernels()
    assert library is not None
    getattr(library, name)(ctypes.byref(call))


def prepared(
    tokens: Tokens,
    state: Tensor,
    around: Around,
) -> tuple[Call, tuple[Tensor | None, ...]]:
    """What every call says of its inputs, and the tensors that must live as long as it."""
    q, k, v, log_decay, beta = tokens
    batch, heads, length, d = q.shape
    channels = log_decay.shape[3]
    turn = None if around.turn is None else around.turn.expand(batch, length, d).unsqueeze(1)
    by_token = {
        "q": q,
        "k": k,
        "v": v,
        "log_decay": log_decay.expand(batch, heads, length, channels),
        "beta": beta,
        "turn": None if turn is None else turn.expand(batch, heads, length, d),
        "gate": around.gate,
    }
    by_token = {name: contiguous_rows(x) for name, x in by_token.items() if x is not None}
    state, scale = state.contiguous(), None if around.scale is None else around.scale.contiguous()
    call = Call(
        batch=batch,
        heads=heads,
        length=length,
        d=d,
        e=v.shape[3],
        channels=channels,
        threads=torch.get_num_threads(),
        S0=state.data_ptr(),
        q_scale=around.q_scale,
        root=around.root,
        unit=around.unit,
        norm=around.norm,
        swish_values=around.swish_values,
        given=PRECISIONS[q.dtype],
        given_decays=PRECISIONS[log_decay.dtype],
        scale=address(scale),
        **{name: x.data_ptr() for name, x in by_token.items()},
        **{f"{name}_stride": strides(x) for name, x in by_token.items()},
    )
    return call, (*by_token.values(), state, scale)
