"""Calls of linear.cpp. Shapes: q (b h t d), k (b h s d), v (b h s e), W (f d), valid (b s)."""

import ctypes
from collections.abc import Iterable
from ctypes import c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

import torch
from torch import Tensor

from subquad.ops.kernel_sums import ShiftedSums, Sums
from subquad.ops.native.library import address, addresses, contiguous_rows, kernels, strides

FEW = 8  # tokens that do not fill a tile


class Map(IntEnum):
    """How features come from queries and keys."""

    GIVEN = 0  # they are features already
    ELU = 1  # elu(x) + 1
    FAVOR = 2  # exp(W x - |x|^2 / (2 sqrt(d)))
    LOGS = 3  # they are logarithms of features


def exponential(map: Map) -> bool:
    """Whether features are exponentials, whose sums have shifts."""
    return map in (Map.FAVOR, Map.LOGS)


class Call(ctypes.Structure):
    """`Linear` of kernels.h, field by field."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "queries", "keys")),
        *((name, c_int32) for name in ("d", "m", "e", "map", "threads")),
        ("half", c_float),
        *((name, c_void_p) for name in "qkv"),
        *((f"{name}_stride", c_int64 * 3) for name in "qkv"),
        *((name, c_void_p) for name in ("valid", "W", "S0", "z0", "c0", "S1", "z1", "c1", "out", "den")),
        *((name, c_void_p) for name in ("grad", "dq", "dk", "dv")),
    ]


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
    call, held = prepared(q, k, v, W, valid, map=map)
    (b, h, t), e, m = q.shape[:3], v.shape[3], call.m
    out, den = v.new_empty(b, h, t, e), v.new_empty(b, h, t)
    after = ShiftedSums(v.new_empty(b, h, m, e), v.new_empty(b, h, m, 1), v.new_zeros(b, h, 1, m))
    call.out, call.den = out.data_ptr(), den.data_ptr()
    point(call, "1", after)
    start = begin(call, before)
    library = kernels()
    assert library is not None
    failed = (library.linear_causal if causal else library.linear)(ctypes.byref(call))
    del held, start
    return None if failed else (out, den, after)


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
    call, held = prepared(q, k, v, W, valid, map=map)
    (b, h, _, e), m = v.shape, call.m
    out, S, z = v.new_empty(v.shape), v.new_empty(b, h, m, e), v.new_empty(b, h, m, 1)
    after = ShiftedSums(S, z, v.new_empty(b, h, 1, m)) if exponential(map) else Sums(S, z)
    call.out = out.data_ptr()
    point(call, "1", after)
    start = begin(call, before)
    library = kernels()
    assert library is not None
    library.linear_step(ctypes.byref(call))
    del held, start
    return out, after


def begin(call: Call, before: Sums | ShiftedSums | None) -> list[Tensor]:
    """Start the call from the sums `before`; what must live as long as it."""
    start = [] if before is None else [x.contiguous() for x in before]
    point(call, "0", start)
    return start


def point(call: Call, end: str, sums: Iterable[Tensor]) -> None:
    """The sums at one end of the sequence: before the first key ("0") or after the last ("1")."""
    for name, x in zip("Szc", sums, strict=False):
        setattr(call, name + end, x.data_ptr())


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
    call, held = prepared(q, k, v, W, valid, map=map)
    grad = grad.contiguous()
    call.grad, call.out, call.den = grad.data_ptr(), out.data_ptr(), den.data_ptr()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    call.dq, call.dk, call.dv = addresses((dq, dk, dv))
    start = begin(call, sums)
    library = kernels()
    assert library is not None
    (library.linear_causal_backward if causal else library.linear_backward)(ctypes.byref(call))
    del held, start
    return dq, dk, dv


def prepared(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor | None, valid: Tensor | None, *, map: Map
) -> tuple[Call, tuple[Tensor | None, ...]]:
    """What every call says of its inputs, and the tensors that must live as long as it."""
    q, k, v = (contiguous_rows(x) for x in (q, k, v))
    W = None if W is None else W.contiguous()
    valid = None if valid is None else valid.contiguous()
    batch, heads, queries, d = q.shape
    call = Call(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=k.shape[2],
        d=d,
        m=d if W is None else len(W),
        e=v.shape[3],
        map=map,
        threads=torch.get_num_threads(),
        half=0.5 * d**-0.5,
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        q_stride=strides(q),
        k_stride=strides(k),
        v_stride=strides(v),
        valid=address(valid),
        W=address(W),
    )
    return call, (q, k, v, W, valid)
