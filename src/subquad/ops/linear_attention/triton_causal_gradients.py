"""Kernels of the gradients of causal linear attention with exponential features (`triton_causal_kernels.py`).

With T_i the log sum of a query's weights, g_i the gradient of its output and w_i = -g_i . out_i, a pair of a
segment gives the logarithms of its features the gradient

    (g_i . v_j + w_i) exp(log phi_f(q_i) + log phi_f(k_j) - T_i)

of which the features hold all but exp(r_j + s_i - T_i). Pairs of different segments go through states:
averages A and log sums L of the keys before a segment, sums G and `behind_w` of the queries behind it.
"""

import triton.language as tl

from subquad.ops.linear_attention.triton_causal_kernels import HEAD
from subquad.ops.linear_attention.triton_exponential_kernels import (
    half_square,
    key_logs,
    load_directions,
    load_features,
    load_sums,
    query_logs,
    query_rows,
)
from subquad.ops.triton.launch import inlined, kernel
from subquad.ops.triton.products import NOTHING, mm
from subquad.ops.triton.tokens import head_of, load_rows, store_rows, token_mask


@inlined
def remaining(log):
    """What of a weight its features do not hold, less one HEAD; where it is larger, they hold nothing."""
    return tl.exp2(tl.minimum(log, 2 * HEAD) - HEAD)


@kernel
def query_gradients(
    q, v, W, valid, A, L, key_u, query_tops, key_tops, grad, log_sums, dtotals, dq,
    n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t = tl.num_programs(0) - 1 - tl.program_id(0)
    bh = tl.program_id(1).to(tl.int64)
    q, v, dq, key_u = (
        head_of(q, bh, heads),
        head_of(v, bh, heads),
        head_of(dq, bh, heads),
        head_of(key_u, bh, heads),
    )
    d, e, i = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, C)
    at, s = t * C + i, t * C // segment
    row = bh * tl.cdiv(n, segment) + s
    seen = token_mask(valid, bh, heads, at, n, MASK)
    g = load_rows(head_of(grad, bh, heads), at, at < n, e, E)
    w = tl.load(dtotals + bh * n + at, mask=at < n, other=0.0)
    log_sum = tl.load(log_sums + bh * n + at, mask=at < n, other=-NOTHING)
    query_top = tl.load(query_tops + bh * n + at, mask=at < n, other=0.0)
    x = query_rows(q, at, n, seen, d, D, MASK) if FAVOR else at
    dx = tl.zeros((C, BD), tl.float32)
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        near = tl.zeros((C, BF), tl.float32)
        for first in range(s * segment, t * C + C, C):
            past = first + i
            there = token_mask(valid, bh, heads, past, n, MASK)
            key_top = tl.load(key_tops + bh * n + past, mask=past < n, other=0.0)
            some = (at[:, None] >= past[None, :]) & there[None, :] & (log_sum < -0.5 * NOTHING)[:, None]
            pair = mm(g, tl.trans(load_rows(v, past, there, e, E)), LOW, PRECISION) + w[:, None]
            pair = tl.where(some, pair * remaining(key_top[None, :] + (query_top - log_sum)[:, None]), 0.0)
            near += mm(pair, load_rows(key_u, past, there, f, features), LOW, PRECISION)
        log = query_logs(x, q, W, at, n, seen, f, features, d, D, FAVOR, MASK, LOW, PRECISION)
        p = tl.exp2(log + (load_features(L, row, f, features, NOTHING)[None, :] - log_sum[:, None]))
        far = mm(g, tl.trans(load_sums(A, row, f, features, e, E)), LOW, PRECISION) + w[:, None]
        dlog = p * far + near * tl.exp2(log - query_top[:, None])
        if FAVOR:
            dx += mm(dlog, load_directions(W, f, features, d, D), LOW, PRECISION)
        else:
            store_rows(dq, at, at < n, f, features, dlog)
    if FAVOR:
        store_rows(dq, at, at < n, d, D, dx)


@kernel
def key_gradients(
    k, v, W, valid, G, behind_w, shifts, query_u, query_tops, key_tops, grad, log_sums, dtotals, dk, half,
    n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, dk, grad = head_of(k, bh, heads), head_of(dk, bh, heads), head_of(grad, bh, heads)
    query_u = head_of(query_u, bh, heads)
    d, e, i = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, C)
    at, s = t * C + i, t * C // segment
    row = bh * tl.cdiv(n, segment) + s
    seen = token_mask(valid, bh, heads, at, n, MASK)
    y = load_rows(head_of(v, bh, heads), at, seen, e, E)
    key_top = tl.load(key_tops + bh * n + at, mask=seen, other=0.0)
    x = load_rows(k, at, seen, d, D) if FAVOR else at
    norm = half_square(x, half) if FAVOR else at
    dx, total = tl.zeros((C, BD), tl.float32), tl.zeros((C,), tl.float32)
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        near = tl.zeros((C, BF), tl.float32)
        for first in range(t * C, tl.minimum(s * segment + segment, n), C):
            later = first + i
            g = load_rows(grad, later, later < n, e, E)
            w = tl.load(dtotals + bh * n + later, mask=later < n, other=0.0)
            log_sum = tl.load(log_sums + bh * n + later, mask=later < n, other=-NOTHING)
            query_top = tl.load(query_tops + bh * n + later, mask=later < n, other=0.0)
            some = (at[:, None] <= later[None, :]) & seen[:, None] & (log_sum < -0.5 * NOTHING)[None, :]
            pair = mm(y, tl.trans(g), LOW, PRECISION) + w[None, :]
            pair = tl.where(some, pair * remaining(key_top[:, None] + (query_top - log_sum)[None, :]), 0.0)
            near += mm(pair, load_rows(query_u, later, later < n, f, features), LOW, PRECISION)
        log = key_logs(x, norm, k, W, at, seen, f, features, d, D, FAVOR, LOW, PRECISION)
        log = tl.where(seen[:, None], log, NOTHING)
        r = tl.exp2(log + load_features(shifts, row, f, features, NOTHING)[None, :])
        far = mm(y, tl.trans(load_sums(G, row, f, features, e, E)), LOW, PRECISION)
        far += load_features(behind_w, row, f, features, 0.0)[None, :]
        dlog = r * far + near * tl.exp2(log - key_top[:, None])
        if FAVOR:
            dx += mm(dlog, load_directions(W, f, features, d, D), LOW, PRECISION)
            total += tl.sum(dlog, 1)
        else:
            store_rows(dk, at, at < n, f, features, dlog)
    if FAVOR:
        dx -= total[:, None] * (2 * half) * x.to(tl.float32)
        store_rows(dk, at, at < n, d, D, dx)


@kernel
def value_gradients(
    k, W, valid, G, shifts, query_u, key_u, query_tops, key_tops, grad, log_sums, dv, half,
    n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, grad = head_of(k, bh, heads), head_of(grad, bh, heads)
    query_u, key_u = head_of(query_u, bh, heads), head_of(key_u, bh, heads)
    d, e, i = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, C)
    at, s = t * C + i, t * C // segment
    row = bh * tl.cdiv(n, segment) + s
    seen = token_mask(valid, bh, heads, at, n, MASK)
    key_top = tl.load(key_tops + bh * n + at, mask=seen, other=0.0)
    dy = tl.zeros((C, BE), tl.float32)
    for first in range(t * C, tl.minimum(s * segment + segment, n), C):
        later = first + i
        product = tl.zeros((C, C), tl.float32)
        for start in range(0, features, BF):
            f = start + tl.arange(0, BF)
            u = load_rows(query_u, later, later < n, f, features)
            product += mm(load_rows(key_u, at, seen, f, features), tl.trans(u), LOW, PRECISION)
        log_sum = tl.load(log_sums + bh * n + later, mask=later < n, other=-NOTHING)
        query_top = tl.load(query_tops + bh * n + later, mask=later < n, other=0.0)
        some = (at[:, None] <= later[None, :]) & seen[:, None] & (log_sum < -0.5 * NOTHING)[None, :]
        some = some & (product > 0)
        log = tl.log2(tl.where(some, product, 1.0)) - 2 * HEAD + key_top[:, None]
        p = tl.exp2(tl.where(some, log + (query_top - log_sum)[None, :], NOTHING))
        dy += mm(p, load_rows(grad, later, later < n, e, E), LOW, PRECISION)
    x = load_rows(k, at, seen, d, D) if FAVOR else at
    norm = half_square(x, half) if FAVOR else at
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        log = key_logs(x, norm, k, W, at, seen, f, features, d, D, FAVOR, LOW, PRECISION)
        log += load_features(shifts, row, f, features, NOTHING)[None, :]
        r = tl.exp2(tl.where(seen[:, None], log, NOTHING))
        dy += mm(r, load_sums(G, row, f, features, e, E), LOW, PRECISION)
    store_rows(head_of(dv, bh, heads), at, at < n, e, E, dy)
