"""What is done to rows before and after a recurrence, as `rows.py` has it, each way in one kernel.

Queries and keys, by KEYS:

    "turned"    turned by their position, queries times a factor
    "unit"      swish(x) of length one
    "scaled"    queries times a factor, keys as they are
"""

# branches are on constants, and Triton's tensors have no types:
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false

import triton.language as tl

from subquad.ops.triton.launch import inlined, kernel
from subquad.ops.triton.tokens import head_of, load_rows, store_rows


@inlined
def swish(x):
    return x * tl.sigmoid(x)


@inlined
def swish_backward(grad, x):
    s = tl.sigmoid(x)
    return grad * s * (1 + x * (1 - s))


@inlined
def log_sigmoid(x):
    small = tl.exp(-tl.abs(x))
    return tl.minimum(x, 0.0) - tl.where(small < 1e-3, small * (1 - small / 2), tl.log(1 + small))


@inlined
def load_wide(x, at, n, c, width):
    return load_rows(x, at, at < n, c, width).to(tl.float32)


@inlined
def turned(x, turns, at, n, c, D: tl.constexpr, SIGN: tl.constexpr):
    """Pairs of channels, half the width apart, as complex numbers, by the angle or, with SIGN -1, back."""
    first = c < D // 2
    other = tl.where(first, c + D // 2, c - D // 2)
    cos = load_wide(turns, at, n, tl.where(first, c, other), D)
    sin = load_wide(turns, at, n, tl.where(first, other, c), D)
    sin *= tl.where(first, -SIGN, SIGN)[None, :]
    return load_wide(x, at, n, c, D) * cos + load_wide(x, at, n, other, D) * sin


@inlined
def unit(x, eps):
    s = swish(x)
    return s * tl.rsqrt(tl.sum(s * s, 1) + eps)[:, None]


@inlined
def unit_backward(grad, x, eps):
    s = swish(x)
    r = tl.rsqrt(tl.sum(s * s, 1) + eps)[:, None]
    s *= r
    return swish_backward((grad - s * tl.sum(grad * s, 1)[:, None]) * r, x)


@kernel
def before(
    q, k, v, logits, turns, q_out, k_out, v_out, log_decay, q_scale, eps, normaliser, n, heads,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, R: tl.constexpr,
    KEYS: tl.constexpr, VALUES: tl.constexpr, LOGITS: tl.constexpr,
):  # fmt: skip
    """VALUES become swish(v); LOGITS become log sigmoid(logit) / normaliser."""
    bh = tl.program_id(1).to(tl.int64)
    at, d, e = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, BD), tl.arange(0, BE)
    q, q_out = head_of(q, bh, heads), head_of(q_out, bh, heads)
    k, k_out = head_of(k, bh, heads), head_of(k_out, bh, heads)
    if KEYS == "turned":
        turns = head_of(turns, bh, heads)
        queries = turned(q, turns, at, n, d, D, 1)
        keys = turned(k, turns, at, n, d, D, 1)
        store_rows(q_out, at, at < n, d, D, queries * q_scale)
        store_rows(k_out, at, at < n, d, D, keys)
    elif KEYS == "unit":
        store_rows(q_out, at, at < n, d, D, unit(load_wide(q, at, n, d, D), eps))
        store_rows(k_out, at, at < n, d, D, unit(load_wide(k, at, n, d, D), eps))
    elif KEYS == "scaled":
        store_rows(q_out, at, at < n, d, D, load_wide(q, at, n, d, D) * q_scale)
    if VALUES:
        values = load_wide(head_of(v, bh, heads), at, n, e, E)
        store_rows(head_of(v_out, bh, heads), at, at < n, e, E, swish(values))
    if LOGITS:
        x = load_wide(head_of(logits, bh, heads), at, n, d, D)
        place = head_of(log_decay, bh, heads)
        store_rows(place, at, at < n, d, D, log_sigmoid(x) / normaliser)


@kernel
def before_backward(
    q, k, v, logits, turns, q_grad, k_grad, v_grad, log_grad, dq, dk, dv, dlogits, q_scale, eps,
    normaliser, n, heads,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, R: tl.constexpr,
    KEYS: tl.constexpr, VALUES: tl.constexpr, LOGITS: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1).to(tl.int64)
    at, d, e = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, BD), tl.arange(0, BE)
    q_grad, dq = head_of(q_grad, bh, heads), head_of(dq, bh, heads)
    k_grad, dk = head_of(k_grad, bh, heads), head_of(dk, bh, heads)
    if KEYS == "turned":
        turns = head_of(turns, bh, heads)
        of_queries = turned(q_grad, turns, at, n, d, D, -1)
        of_keys = turned(k_grad, turns, at, n, d, D, -1)
        store_rows(dq, at, at < n, d, D, of_queries * q_scale)
        store_rows(dk, at, at < n, d, D, of_keys)
    elif KEYS == "unit":
        x = load_wide(head_of(q, bh, heads), at, n, d, D)
        grad = load_wide(q_grad, at, n, d, D)
        store_rows(dq, at, at < n, d, D, unit_backward(grad, x, eps))
        x = load_wide(head_of(k, bh, heads), at, n, d, D)
        grad = load_wide(k_grad, at, n, d, D)
        store_rows(dk, at, at < n, d, D, unit_backward(grad, x, eps))
    elif KEYS == "scaled":
        grad = load_wide(q_grad, at, n, d, D)
        store_rows(dq, at, at < n, d, D, grad * q_scale)
    if VALUES:
        x = load_wide(head_of(v, bh, heads), at, n, e, E)
        grad = load_wide(head_of(v_grad, bh, heads), at, n, e, E)
        store_rows(head_of(dv, bh, heads), at, at < n, e, E, swish_backward(grad, x))
    if LOGITS:
        x = load_wide(head_of(logits, bh, heads), at, n, d, D)
        grad = load_wide(head_of(log_grad, bh, heads), at, n, d, D)
        place = head_of(dlogits, bh, heads)
        store_rows(place, at, at < n, d, D, grad * tl.sigmoid(-x) / normaliser)


@kernel
def after(
    raw, scale, gate, out, eps, n, heads,
    E: tl.constexpr, BE: tl.constexpr, R: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1).to(tl.int64)
    at, e = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, BE)
    x = load_wide(head_of(raw, bh, heads), at, n, e, E)
    x *= tl.rsqrt(tl.sum(x * x, 1) / E + eps)[:, None]
    x *= tl.load(scale + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    if GATED:
        x *= swish(load_wide(head_of(gate, bh, heads), at, n, e, E))
    store_rows(head_of(out, bh, heads), at, at < n, e, E, x)


@kernel
def after_backward(
    raw, grad, scale, gate, draw, dgate, dscale, eps, n, heads,
    E: tl.constexpr, BE: tl.constexpr, R: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """The gradient of scales comes in parts, one a program."""
    bh = tl.program_id(1).to(tl.int64)
    at, e = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, BE)
    x = load_wide(head_of(raw, bh, heads), at, n, e, E)
    of_out = load_wide(head_of(grad, bh, heads), at, n, e, E)
    factors = tl.load(scale + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    r = tl.rsqrt(tl.sum(x * x, 1) / E + eps)[:, None]
    x *= r
    if GATED:
        y = load_wide(head_of(gate, bh, heads), at, n, e, E)
        of_gate = swish_backward(of_out * x * factors, y)
        store_rows(head_of(dgate, bh, heads), at, at < n, e, E, of_gate)
        of_out *= swish(y)
    part = bh * tl.num_programs(0) + tl.program_id(0)
    tl.store(dscale + part * E + e, tl.sum(of_out * x, 0), mask=e < E)
    of_out *= factors
    of_out = (of_out - x * (tl.sum(of_out * x, 1) / E)[:, None]) * r
    store_rows(head_of(draw, bh, heads), at, at < n, e, E, of_out)
