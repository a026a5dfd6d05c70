"""Calls of linear.cpp. Shapes: q (b h t d), k (b h s d), v (b h s e), W (f d), valid (b s).

q, k, v, outputs and their gradients are of one dtype, float32 or half precision; all else is float32.
"""

from ctypes import c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

import torch
from torch import Tensor

from subquad.ops.allocation import empty_result
from subquad.ops.kernel_sums import ShiftedSums, Sums
from subquad.ops.native.library import PRECISIONS, Call, rows

FEW = 8  # tokens that do not fill a tile
SUMS = torch.float32  # what sums and denominators are kept in


class Map(IntEnum):
    """How features come from queries and keys."""

    GIVEN = 0  # they are features already
    ELU = 1  # elu(x) + 1
    FAVOR = 2  # exp(W x - |x|^2 / (2 sqrt(d)))
    LOGS = 3  # they are logarithms of features


def exponential(map: Map) -> bool:
    """Whether features are exponentials, whose sums have shifts."""
    return map in (Map.FAVOR, Map.LOGS)


class Linear(Call):
    """The struct of kernels.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "queries", "keys")),
        *((name, c_int32) for name in ("d", "m", "e", "map", "threads", "given")),
        ("half", c_float),
        *rows("q", "k", "v"),
        *((name, c_void_p) for name in ("valid", "W", "S0", "z0", "c0", "S1", "z1", "c1", "out", "den")),
        *((name, c_void_p) for name in ("grad", "dq", "dk", "dv")),
    )

    def begin(self, sums: Sums | ShiftedSums | None) -> None:
        """With the sums before the first key."""
        if sums is not None:
            self.point(**{f"{name}0": x for name, x in sums._asdict().items()})

    def end(self, sums: Sums | ShiftedSums) -> None:
        """With the sums after the last key."""
        self.point(**{f"{name}1": x for name, x in sums._asdict().items()})


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Tensor | None,
    valid: Tensor | None,
    *,
    map: Map,
    causal: bool,
    before: Sums | ShiftedSums | None,
) -> tuple[Tensor, Tensor, ShiftedSums] | None:
    """Outputs (b h t e), denominators (b h t) and sums; `None` where a denominator leaves float32's range.

    The shifts of features that are no exponentials have no meaning.
    """
    call = prepared(q, k, v, W, valid, map=map)
    (b, h, t), e, m = q.shape[:3], v.shape[3], call.m
    out, den = empty_result(v, b, h, t, e), v.new_empty(b, h, t, dtype=SUMS)
    S, z = v.new_empty(b, h, m, e, dtype=SUMS), v.new_empty(b, h, m, 1, dtype=SUMS)
    after = ShiftedSums(S, z, v.new_zeros(b, h, 1, m, dtype=SUMS))
    call.begin(before)
    call.point(out=out, den=den)
    call.end(after)
    return (out, den, after) if call.run("linear_causal" if causal else "linear") else None


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Tensor | None,
    valid: Tensor | None,
    *,
    map: Map,
    before: Sums | ShiftedSums | None,
) -> tuple[Tensor, Sums | ShiftedSums] | None:
    """The next tokens of a stream, without what a backward pass would need."""
    if k.shape[2] > FEW:
        found = forward(q, k, v, W, valid, map=map, causal=True, before=before)
        if found is None:
            return None
        out, _, after = found
        return out, after if exponential(map) else Sums(after.S, after.z)
    call = prepared(q, k, v, W, valid, map=map)
    (b, h, t, e), m = v.shape, call.m
    out, S = v.new_empty(b, h, t, e), v.new_empty(b, h, m, e, dtype=SUMS)
    z = S.new_empty(b, h, m, 1)
    after = ShiftedSums(S, z, S.new_empty(b, h, 1, m)) if exponential(map) else Sums(S, z)
    call.begin(before)
    call.point(out=out)
    call.end(after)
    call.run("linear_step")
    return out, after


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Tensor | None,
    valid: Tensor | None,
    out: Tensor,
    den: Tensor,
    sums: ShiftedSums | None,
    *,
    map: Map,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. `sums` are those of `forward`, which the causal form makes anew."""
    call = prepared(q, k, v, W, valid, map=map)
    dq, dk, dv = (empty_result(x) for x in (q, k, v))
    call.begin(sums)
    call.point(grad=grad, out=out, den=den, dq=dq, dk=dk, dv=dv)
    call.run("linear_causal_backward" if causal else "linear_backward")
    return dq, dk, dv


def prepared(q: Tensor, k: Tensor, v: Tensor, W: Tensor | None, valid: Tensor | None, *, map: Map) -> Linear:
    """What every call says of its inputs."""
    batch, heads, queries, d = q.shape
    call = Linear(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=k.shape[2],
        d=d,
        m=d if W is None else len(W),
        e=v.shape[3],
        map=map,
        threads=torch.get_num_threads(),
        given=PRECISIONS[q.dtype],
        half=0.5 * d**-0.5,
    )
    call.tokens(q=q, k=k, v=v)
    call.point(valid=valid, W=None if W is None else W.float())
    return call
