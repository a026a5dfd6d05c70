"""Calls of decay.cpp and delta.cpp. Shapes: q, k (b h t d), v (b h t e), beta (b h t 1), state (b h d e).

Decays broadcast: (#b #h t 1), one for all channels of a key, or (#b #h t d).
"""

from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.allocation import empty_result
from subquad.ops.native.library import PRECISIONS, Call, readable, rows, usable
from subquad.ops.rows import Around, Pulled, Tokens


class Recurrence(Call):
    """The struct of kernels.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "length")),
        *((name, c_int32) for name in ("d", "e", "channels", "threads")),
        *rows("q", "k", "v", "log_decay", "beta"),
        *((name, c_void_p) for name in ("S0", "S1", "out", "grad", "grad_S1")),
        *((name, c_void_p) for name in ("dq", "dk", "dv", "dlog_decay", "dbeta", "dS0")),
        *((name, c_float) for name in ("q_scale", "root", "unit", "norm")),
        ("swish_values", c_int32),
        *((name, c_void_p) for name in ("turn", "gate", "scale")),
        *((f"{name}_stride", c_int64 * 3) for name in ("turn", "gate")),
        *((name, c_void_p) for name in ("raw", "dgate", "dscale")),
        *((name, c_int32) for name in ("given", "given_decays")),
    )


def takes(tokens: Tokens, state: Tensor, around: Around) -> bool:
    """Whether the kernels run forward on these: float32, or half precision for what is as wide as a token."""
    wide = (around.scale, around.turn, tokens.beta, None if by_channel(tokens) else tokens.log_decay)
    given = (x for x in (tokens.q, tokens.k, tokens.v, around.gate) if x is not None)
    return readable(*given) and readable(tokens.log_decay) and usable(state, *wide)


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
    call = prepared(tokens, state, around)
    out, last = empty_result(tokens.v), empty_result(state)
    raw = empty_result(last, *(out.shape if learns and around.norm else (0,)))
    call.point(out=out, S1=last, raw=raw)
    call.run("decayed" if tokens.beta is None else "delta")
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
    call = prepared(tokens, state, around)
    given = (q, k, v, state, beta, around.gate)
    dq, dk, dv, dstate, dbeta, dgate = (empty_result(q, *((0,) if x is None else x.shape)) for x in given)
    dscale = q.new_empty(0 if around.scale is None else (*q.shape[:2], v.shape[3]))
    dlog_decay = q.new_zeros(1).expand(log_decay.shape)
    if decays:
        dlog_decay = empty_result(q, *q.shape[:3], call.channels)
        call.point(dlog_decay=dlog_decay)
    call.point(grad=grad, grad_S1=grad_state, raw=raw)
    call.point(dq=dq, dk=dk, dv=dv, dS0=dstate, dbeta=dbeta, dgate=dgate, dscale=dscale)
    call.run("decayed_backward" if beta is None else "delta_backward")
    if around.scale is not None:
        dscale = dscale.sum((0, 1))
    dlog_decay = dlog_decay.sum_to_size(log_decay.shape)
    return Pulled(Tokens(dq, dk, dv, dlog_decay, dbeta), dstate, dscale, dgate)


def prepared(tokens: Tokens, state: Tensor, around: Around) -> Recurrence:
    """What every call says of its inputs."""
    q, k, v, log_decay, beta = tokens
    batch, heads, length, d = q.shape
    channels = log_decay.shape[3]
    call = Recurrence(
        batch=batch,
        heads=heads,
        length=length,
        d=d,
        e=v.shape[3],
        channels=channels,
        threads=torch.get_num_threads(),
        q_scale=around.q_scale,
        root=around.root,
        unit=around.unit,
        norm=around.norm,
        swish_values=around.swish_values,
        given=PRECISIONS[q.dtype],
        given_decays=PRECISIONS[log_decay.dtype],
    )
    turn = None if around.turn is None else around.turn[:, None].expand(batch, heads, length, d)
    call.tokens(q=q, k=k, v=v, beta=beta, turn=turn, gate=around.gate)
    call.tokens(log_decay=log_decay.expand(batch, heads, length, channels))
    call.point(S0=state, scale=around.scale)
    return call
