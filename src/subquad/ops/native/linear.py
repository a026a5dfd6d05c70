"""Calls of linear.cpp. Shapes: q (b h t d), k (b h s d), v (b h s e), W (f d), valid (b s)."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from subquad.ops.native.library import address, addresses, contiguous_rows, kernels, strides

FEW = 8  # tokens that do not fill a tile


class Map(IntEnum):
    """How features come from queries and keys."""

    GIVEN = 0  # they are features already
    ELU = 1  # elu(x) + 1
    FAVOR = 2  # exp(W x - |x|^2 / (2 sqrt(d)))
    LOGS = 3  # they are logarithms of features


class Sums(NamedTuple):
    S: Tensor  # (b h f e)
    z: Tensor  # (b h f)
    c: Tensor  # (b h f), the shifts of exponential features; without meaning for others


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
    before: Sums | None,
) -> tuple[Tensor, Tensor, Sums] | None:
    """Outputs (b h t e), denominators (b h t) and sums; `None` where a denominator leaves float32's range."""
    call, held = prepared(q, k, v, W, valid, map=map)
    out, den = v.new_empty(*q.shape[:3], v.shape[3]), v.new_empty(q.shape[:3])
    sizes = (*q.shape[:2], call.m)
    after = Sums(v.new_empty(*sizes, v.shape[3]), v.new_zeros(sizes), v.new_zeros(sizes))
    call.out, call.den = out.data_ptr(), den.data_ptr()
    call.S1, call.z1, call.c1 = addresses(after)
    if before is not None:
        before = Sums(*(x.contiguous() for x in before))
        call.S0, call.z0, call.c0 = addresses(before)
    library = kernels()
    assert library is not None
    failed = (library.linear_causal if causal else library.linear)(ctypes.byref(call))
    del held
    return None if failed else (out, den, after)


def step(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor | None, valid: Tensor | None, *, map: Map, before: Sums | None
) -> tuple[Tensor, Sums] | None:
    """The next tokens of a stream, without what a backward pass would need."""
    if k.shape[2] > FEW:
        found = forward(q, k, v, W, valid, map=map, causal=True, before=before)
        return None if found is None else (found[0], found[2])
    call, held = prepared(q, k, v, W, valid, map=map)
    sizes = (*q.shape[:2], call.m)
    out = v.new_empty(v.shape)
    after = Sums(v.new_empty(*sizes, v.shape[3]), v.new_empty(sizes), v.new_empty(sizes))
    call.out, (call.S1, call.z1, call.c1) = out.data_ptr(), addresses(after)
    if before is not None:
        before = Sums(*(x.contiguous() for x in before))
        call.S0, call.z0, call.c0 = addresses(before)
    library = kernels()
    assert library is not None
    library.linear_step(ctypes.byref(call))
    del held
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
    sums: Sums | None,
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
    if sums is not None:
        call.S0, call.z0, call.c0 = addresses(sums)
    library = kernels()
    assert library is not None
    (library.linear_causal_backward if causal else library.linear_backward)(ctypes.byref(call))
    del held
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
