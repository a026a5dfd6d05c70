"""Calls of decay.cpp and delta.cpp. Shapes: q, k (b h t d), v (b h t e), beta (b h t 1), state (b h d e).

Decays broadcast: (#b #h t 1), one for all channels of a key, or (#b #h t d).
"""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from subquad.ops.native.library import address, contiguous_rows, kernels, strides


class Gradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor  # (b h t _), also where one row or head was given for all; zeros where not asked for
    beta: Tensor  # without numbers where there was none
    state: Tensor


class Call(ctypes.Structure):
    """`Recurrence` of kernels.h, field by field."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "length")),
        *((name, c_int32) for name in ("d", "e", "channels", "threads")),
        *((name, c_void_p) for name in ("q", "k", "v", "log_decay", "beta")),
        *((f"{name}_stride", c_int64 * 3) for name in ("q", "k", "v", "log_decay", "beta")),
        *((name, c_void_p) for name in ("S0", "S1", "out", "grad", "grad_S1")),
        *((name, c_void_p) for name in ("dq", "dk", "dv", "dlog_decay", "dbeta", "dS0")),
    ]


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (b h t e) and the state after the last token; with `beta` by the delta rule."""
    call, held = prepared(q, k, v, log_decay, beta, state)
    out, last = v.new_empty(*q.shape[:3], v.shape[3]), torch.empty(state.shape, dtype=state.dtype)
    call.out, call.S1 = out.data_ptr(), last.data_ptr()
    run("decayed" if beta is None else "delta", call)
    del held
    return out, last


def backward(
    grad: Tensor,
    grad_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor,
    *,
    decays: bool,
) -> Gradients:
    """From the gradients of outputs and last state; that of log_decay only if `decays`."""
    call, held = prepared(q, k, v, log_decay, beta, state)
    grad, grad_state = grad.contiguous(), grad_state.contiguous()
    call.grad, call.grad_S1 = grad.data_ptr(), grad_state.data_ptr()
    dq, dk, dv, dstate = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v, state))
    dlog_decay = q.new_zeros(1).expand(*q.shape[:3], call.channels)
    if decays:
        dlog_decay = q.new_empty(dlog_decay.shape)
        call.dlog_decay = dlog_decay.data_ptr()
    dbeta = q.new_empty(0 if beta is None else beta.shape)
    call.dq, call.dk, call.dv, call.dS0 = (x.data_ptr() for x in (dq, dk, dv, dstate))
    call.dbeta = dbeta.data_ptr()
    run("decayed_backward" if beta is None else "delta_backward", call)
    del held
    return Gradients(dq, dk, dv, dlog_decay, dbeta, dstate)


def run(name: str, call: Call) -> None:
    library = kernels()
    assert library is not None
    getattr(library, name)(ctypes.byref(call))


def prepared(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None, state: Tensor
) -> tuple[Call, tuple[Tensor | None, ...]]:
    """What every call says of its inputs, and the tensors that must live as long as it."""
    channels = log_decay.shape[3]
    log_decay = log_decay.expand(*q.shape[:3], channels)
    q, k, v, log_decay = (contiguous_rows(x) for x in (q, k, v, log_decay))
    state = state.contiguous()
    batch, heads, length, d = q.shape
    call = Call(
        batch=batch,
        heads=heads,
        length=length,
        d=d,
        e=v.shape[3],
        channels=channels,
        threads=torch.get_num_threads(),
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        log_decay=log_decay.data_ptr(),
        beta=address(beta),
        q_stride=strides(q),
        k_stride=strides(k),
        v_stride=strides(v),
        log_decay_stride=strides(log_decay),
        S0=state.data_ptr(),
    )
    if beta is not None:
        call.beta_stride = strides(beta)
    return call, (q, k, v, log_decay, beta, state)
