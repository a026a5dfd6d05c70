"""Compiled kernels for the CPU: calls of native/decay.cpp and native/delta.cpp.

They read half precision forward, and gradients in float32, to which blocks of tokens are widened.
"""

from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.native.library import PRECISIONS, KernelCall, rows, why_not_float32, why_not_half
from subquad.ops.recurrence import RecurrenceCall, RecurrenceResult, blocks, why_not_one_decay
from subquad.ops.recurrence.rows import Gradients, RecurrenceInputs
from subquad.ops.shared.allocation import empty_result


class Recurrence(KernelCall):
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
        *((name, c_int32) for name in ("dtype", "decays_dtype")),
    )


def refuses(call: RecurrenceCall) -> str | None:
    (q, k, v, log_decay, beta), state, fusion, *_ = call
    return (
        why_not_half(q, k, v, fusion.gate)
        or why_not_half(log_decay)
        or why_not_float32(state, fusion.scale, fusion.rotary)
        or (None if beta is None else why_not_half(beta) or why_not_one_decay(call))
    )


def forward(call: RecurrenceCall) -> RecurrenceResult:
    *_, log_decay, beta = call.tokens
    narrow = log_decay.dtype != torch.float32 and log_decay.shape[3] == 1
    if narrow or (beta is not None and beta.dtype != torch.float32):
        return blocks.forward(call, advance)
    return advance(call)


def advance(call: RecurrenceCall) -> RecurrenceResult:
    """Where decays, unless by channel, and beta are of float32."""
    kernel = make_call(call)
    out, last = empty_result(call.tokens.v), call.state
    if not (call.in_place and last.is_contiguous()):
        last = empty_result(last)
    raw = empty_result(last, *(out.shape if call.needs_grad and call.fusion.rms_norm_eps else (0,)))
    kernel.point(out=out, S1=last, raw=raw)
    kernel.run("decayed" if call.tokens.beta is None else "delta")
    return RecurrenceResult(out, raw, last)


def backward(grads: tuple[Tensor, Tensor], call: RecurrenceCall, raw: Tensor) -> Gradients:
    if why_not_float32(*call.tokens, call.fusion.gate) is None:
        return advance_backward(grads, call, raw)
    return blocks.backward(grads, call, raw, advance, advance_backward)


def advance_backward(grads: tuple[Tensor, Tensor], call: RecurrenceCall, raw: Tensor) -> Gradients:
    """Where all is of float32."""
    (q, k, v, log_decay, beta), state, fusion, *_ = call
    kernel = make_call(call)
    inputs = (q, k, v, state, beta, fusion.gate)
    dq, dk, dv, dstate, dbeta, dgate = (empty_result(q, *((0,) if x is None else x.shape)) for x in inputs)
    dscale = q.new_empty(0 if fusion.scale is None else (*q.shape[:2], v.shape[3]))
    dlog_decay = q.new_zeros(1).expand(log_decay.shape)
    if call.needs_decay_grad:
        dlog_decay = empty_result(q, *q.shape[:3], kernel.channels)
        kernel.point(dlog_decay=dlog_decay)
    kernel.point(grad=grads[0], grad_S1=grads[1], raw=raw)
    kernel.point(dq=dq, dk=dk, dv=dv, dS0=dstate, dbeta=dbeta, dgate=dgate, dscale=dscale)
    kernel.run("decayed_backward" if beta is None else "delta_backward")
    if fusion.scale is not None:
        dscale = dscale.sum((0, 1))
    dlog_decay = dlog_decay.sum_to_size(log_decay.shape)
    return Gradients(RecurrenceInputs(dq, dk, dv, dlog_decay, dbeta), dstate, dscale, dgate)


def make_call(call: RecurrenceCall) -> Recurrence:
    """What every call says of its inputs."""
    (q, k, v, log_decay, beta), state, fusion, *_ = call
    batch, heads, length, d = q.shape
    channels = log_decay.shape[3]
    kernel = Recurrence(
        batch=batch,
        heads=heads,
        length=length,
        d=d,
        e=v.shape[3],
        channels=channels,
        threads=torch.get_num_threads(),
        q_scale=fusion.q_scale,
        root=1 / fusion.gate_normalizer if fusion.gate_normalizer else 0,
        unit=fusion.qk_l2norm_eps,
        norm=fusion.rms_norm_eps,
        swish_values=fusion.swish_values,
        dtype=PRECISIONS[q.dtype],
        decays_dtype=PRECISIONS[log_decay.dtype],
    )
    rotary = None if fusion.rotary is None else fusion.rotary[:, None].expand(batch, heads, length, d)
    kernel.tokens(q=q, k=k, v=v, beta=beta, turn=rotary, gate=fusion.gate)
    kernel.tokens(log_decay=log_decay.expand(batch, heads, length, channels))
    kernel.point(S0=state, scale=fusion.scale)
    return kernel
