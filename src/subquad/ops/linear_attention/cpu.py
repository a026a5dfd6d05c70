"""Compiled kernels for the CPU, in float32 and half precision: calls of native/linear.cpp.

q, k, v, outputs and their gradients are of one dtype, float32 or half precision; all else is float32.
"""

from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from subquad.ops.linear_attention import LinearCall, LinearResult
from subquad.ops.linear_attention.sums import ShiftedSums, Sums
from subquad.ops.native.library import PRECISIONS, KernelCall, rows, why_not_float32, why_not_half
from subquad.ops.shared.allocation import empty_result

CHUNK = 64  # tokens, in linear.cpp
MAX_STEP = 8  # tokens that do not fill a tile
SUMS = torch.float32  # what sums and denominators are kept in


class Linear(KernelCall):
    """The struct of kernels.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "queries", "keys")),
        *((name, c_int32) for name in ("d", "m", "e", "kind", "threads", "dtype")),
        ("half", c_float),
        *rows("q", "k", "v"),
        *((name, c_void_p) for name in ("valid", "W", "S0", "z0", "c0", "S1", "z1", "c1", "out", "den")),
        *((name, c_void_p) for name in ("grad", "dq", "dk", "dv")),
    )

    def set_initial(self, sums: Sums | ShiftedSums | None) -> None:
        """The sums before the first key."""
        if sums is not None:
            self.point(**{f"{name}0": x for name, x in sums._asdict().items()})

    def set_final(self, sums: Sums | ShiftedSums) -> None:
        """Where the sums after the last key go."""
        self.point(**{f"{name}1": x for name, x in sums._asdict().items()})


def refuses(call: LinearCall) -> str | None:
    return why_not_half(call.q, call.k, call.v) or (call.before and why_not_float32(*call.before))


def forward(call: LinearCall) -> LinearResult | None:
    """`None` where a denominator leaves float32's range."""
    q, _, v = call[:3]
    (b, h, t), e, f = q.shape[:3], v.shape[3], call.features
    out, denominator = empty_result(v, b, h, t, e), v.new_empty(b, h, t, dtype=SUMS)
    S, z = v.new_empty(b, h, f, e, dtype=SUMS), v.new_empty(b, h, f, 1, dtype=SUMS)
    after = ShiftedSums(S, z, v.new_zeros(b, h, 1, f, dtype=SUMS))
    kernel = make_call(call)
    kernel.set_initial(call.before)
    kernel.point(out=out, den=denominator)
    kernel.set_final(after)
    exact = kernel.run("linear_causal" if call.causal else "linear")
    return LinearResult(out, denominator, after, CHUNK) if exact else None


def step(call: LinearCall) -> tuple[Tensor, Sums | ShiftedSums] | None:
    """The next tokens of a stream, without what a backward pass would need."""
    q, k, v = call[:3]
    if k.shape[2] > MAX_STEP:
        result = forward(call)
        if result is None:
            return None
        after = result.sums
        return result.out, after if call.kind.exponential else Sums(after.S, after.z)
    out, after = v.new_empty(*q.shape[:3], v.shape[3]), call.after
    kernel = make_call(call)
    kernel.set_initial(call.before)
    kernel.point(out=out)
    kernel.set_final(after)
    kernel.run("linear_step")
    return out, after


def backward(grad: Tensor, call: LinearCall, result: LinearResult) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the causal form makes its sums anew."""
    kernel = make_call(call)
    dq, dk, dv = (empty_result(x) for x in call[:3])
    kernel.set_initial(None if call.causal else result.sums)
    kernel.point(grad=grad, out=result.out, den=result.denominator, dq=dq, dk=dk, dv=dv)
    kernel.run("linear_causal_backward" if call.causal else "linear_backward")
    return dq, dk, dv


def make_call(call: LinearCall) -> Linear:
    """What every call says of its inputs."""
    q, k, v, W, valid, kind, *_ = call
    batch, heads, queries, d = q.shape
    kernel = Linear(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=k.shape[2],
        d=d,
        m=call.features,
        e=v.shape[3],
        kind=kind,
        threads=torch.get_num_threads(),
        dtype=PRECISIONS[q.dtype],
        half=0.5 * d**-0.5,
    )
    kernel.tokens(q=q, k=k, v=v)
    kernel.point(valid=valid, W=None if W is None else W.float())
    return kernel
