"""Kernels of causal linear attention whose features are exponentials: FAVOR's, or of given logs.

As in `triton_exponential_kernels.py`, averages A and log sums L stand for keys, here for those before each
segment of tokens. Inside a segment a query takes its keys one by one, as softmax attention does, by weights
that are products of features under two shifts, the largest logarithm r_j of the key and s_i of the query:

    u_jf = exp(log phi_f(k_j) - r_j + HEAD)        weight_ij = exp(r_j + s_i - 2 HEAD) sum_f u_if u_jf

so that no key, however large, drowns an earlier one, and nothing has to be done again. These features are
written once, and live as long as the call. Both parts share one running softmax over what a query has seen.

Back: what the queries behind a segment give to its keys are sums under shifts, as of keys, but from behind.
"""
# branches on constants and Triton's tensors are beyond pyright
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false

import triton.language as tl

from subquad.ops.linear_attention.triton_exponential_kernels import (
    half_square,
    key_logs,
    load_features,
    load_sums,
    query_columns,
    query_logs,
    query_rows,
    store_sums,
)
from subquad.ops.triton.launch import kernel
from subquad.ops.triton.products import LN2, LOG2E, NOTHING, mm
from subquad.ops.triton.tokens import head_of, load_rows, store_rows, token_mask

HEAD = tl.constexpr(57.0)  # two factors of 2^57 and a sum over 2^10 features stay below the largest float32


@kernel
def query_features(
    q, W, valid, u, tops, n, heads, features, segment,
    D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """u_if, and the shifts s_i."""
    bh, at, d = tl.program_id(1).to(tl.int64), tl.program_id(0) * C + tl.arange(0, C), tl.arange(0, BD)
    q, u = head_of(q, bh, heads), head_of(u, bh, heads)
    seen = token_mask(valid, bh, heads, at, n, MASK)
    x = query_rows(q, at, n, seen, d, D, MASK) if FAVOR else at
    top = tl.full((C,), NOTHING, tl.float32)
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        log = query_logs(x, q, W, at, n, seen, f, features, d, D, FAVOR, MASK, LOW, PRECISION)
        top = tl.maximum(top, tl.max(log, 1))
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        log = query_logs(x, q, W, at, n, seen, f, features, d, D, FAVOR, MASK, LOW, PRECISION)
        store_rows(u, at, at < n, f, features, tl.exp2(log - top[:, None] + HEAD))
    tl.store(tops + bh * n + at, top, mask=at < n)


@kernel
def key_features(
    k, W, valid, u, tops, half, n, heads, features, segment,
    D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """u_jf, and the shifts r_j."""
    bh, at, d = tl.program_id(1).to(tl.int64), tl.program_id(0) * C + tl.arange(0, C), tl.arange(0, BD)
    k, u = head_of(k, bh, heads), head_of(u, bh, heads)
    seen = token_mask(valid, bh, heads, at, n, MASK)
    x = load_rows(k, at, seen, d, D) if FAVOR else at
    norm = half_square(x, half) if FAVOR else at
    top = tl.full((C,), NOTHING, tl.float32)
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        log = key_logs(x, norm, k, W, at, seen, f, features, d, D, FAVOR, LOW, PRECISION)
        top = tl.maximum(top, tl.max(log, 1))
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        log = key_logs(x, norm, k, W, at, seen, f, features, d, D, FAVOR, LOW, PRECISION)
        phi = tl.where(seen[:, None], tl.exp2(log - top[:, None] + HEAD), 0.0)
        store_rows(u, at, at < n, f, features, phi)
    tl.store(tops + bh * n + at, top, mask=at < n)


@kernel
def scan_keys(
    S, z, c, S0, z0, c0, A, L, S1, z1, c1, segments, features,
    E: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr, INITIAL: tl.constexpr,
):  # fmt: skip
    """Averages and log sums of the keys before each segment, and the sums after the last."""
    bh = tl.program_id(1).to(tl.int64)
    f, e = tl.program_id(0) * BF + tl.arange(0, BF), tl.arange(0, BE)
    values, total = tl.zeros((BF, BE), tl.float32), tl.zeros((BF,), tl.float32)
    top = tl.full((BF,), NOTHING, tl.float32)
    if INITIAL:
        values = load_sums(S0, bh, f, features, e, E)
        total = load_features(z0, bh, f, features, 0.0)
        top = tl.maximum(load_features(c0, bh, f, features, NOTHING) * LOG2E, NOTHING)
    for s in range(segments):
        row = bh * segments + s
        some = tl.where(total > 0, total, 1.0)
        log_sum = tl.where(total > 0, top + tl.log2(some), NOTHING)
        store_sums(A, L, row * features, f, features, e, E, values / some[:, None], log_sum)
        own = load_features(c, row, f, features, NOTHING) * LOG2E
        new = tl.maximum(top, own)
        old, add = tl.exp2(top - new), tl.exp2(own - new)
        values = values * old[:, None] + load_sums(S, row, f, features, e, E) * add[:, None]
        total = total * old + load_features(z, row, f, features, 0.0) * add
        top = new
    store_sums(S1, z1, bh * features, f, features, e, E, values, total)
    tl.store(c1 + bh * features + f, top * LN2, mask=f < features)


@kernel
def causal_averages(
    q, v, W, valid, A, L, query_u, key_u, query_tops, key_tops, out, log_sums, n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tiles of a segment have most to do
    bh = tl.program_id(1).to(tl.int64)
    q, v = head_of(q, bh, heads), head_of(v, bh, heads)
    query_u, key_u = head_of(query_u, bh, heads), head_of(key_u, bh, heads)
    d, e, i = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, C)
    at, s = t * C + i, t * C // segment
    row = bh * tl.cdiv(n, segment) + s
    seen = token_mask(valid, bh, heads, at, n, MASK)
    o, total = tl.zeros((C, BE), tl.float32), tl.zeros((C,), tl.float32)
    top = tl.full((C,), NOTHING, tl.float32)
    x = query_rows(q, at, n, seen, d, D, MASK) if FAVOR else at
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        log = query_logs(x, q, W, at, n, seen, f, features, d, D, FAVOR, MASK, LOW, PRECISION)
        log += load_features(L, row, f, features, NOTHING)[None, :]
        new = tl.maximum(top, tl.max(log, 1))
        p = tl.where(log > 0.5 * NOTHING, tl.exp2(log - new[:, None]), 0.0).to(LOW)
        old = tl.exp2(top - new)
        o = o * old[:, None] + mm(p, load_sums(A, row, f, features, e, E), LOW, PRECISION)
        total = total * old + tl.sum(p.to(tl.float32), 1)
        top = new
    query_top = tl.load(query_tops + bh * n + at, mask=at < n, other=0.0)
    for first in range(s * segment, t * C + C, C):
        past = first + i
        there = token_mask(valid, bh, heads, past, n, MASK)
        product = tl.zeros((C, C), tl.float32)
        for start in range(0, features, BF):
            f = start + tl.arange(0, BF)
            y = load_rows(key_u, past, there, f, features)
            product += mm(load_rows(query_u, at, at < n, f, features), tl.trans(y), LOW, PRECISION)
        key_top = tl.load(key_tops + bh * n + past, mask=past < n, other=0.0)
        some = (at[:, None] >= past[None, :]) & there[None, :] & (product > 0)
        log = tl.log2(tl.where(some, product, 1.0)) + key_top[None, :] + (query_top - 2 * HEAD)[:, None]
        log = tl.where(some, log, NOTHING)
        new = tl.maximum(top, tl.max(log, 1))
        p, old = tl.where(some, tl.exp2(log - new[:, None]), 0.0).to(LOW), tl.exp2(top - new)
        o = o * old[:, None] + mm(p, load_rows(v, past, there, e, E), LOW, PRECISION)
        total = total * old + tl.sum(p.to(tl.float32), 1)
        top = new
    some = tl.where(total > 0, total, 1.0)
    store_rows(head_of(out, bh, heads), at, at < n, e, E, o / some[:, None])
    tl.store(log_sums + bh * n + at, tl.where(total > 0, top + tl.log2(some), -NOTHING), mask=at < n)


@kernel
def query_sums(
    q, W, valid, out, grad, log_sums, dtotals, S, z, c, n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the queries of each segment give to earlier keys, under shifts of base 2; writes all w, too."""
    s, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q, out, grad = head_of(q, bh, heads), head_of(out, bh, heads), head_of(grad, bh, heads)
    d, e, f = tl.arange(0, BD), tl.arange(0, BE), tl.program_id(2) * BF + tl.arange(0, BF)
    values, total = tl.zeros((BF, BE), tl.float32), tl.zeros((BF,), tl.float32)
    top = tl.full((BF,), NOTHING, tl.float32)
    for i in range(segment // C):
        at = s * segment + i * C + tl.arange(0, C)
        seen = token_mask(valid, bh, heads, at, n, MASK)
        g, o = load_rows(grad, at, at < n, e, E), load_rows(out, at, at < n, e, E)
        w = -tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
        if tl.program_id(2) == 0:
            tl.store(dtotals + bh * n + at, w, mask=at < n)
        log_sum = tl.load(log_sums + bh * n + at, mask=at < n, other=-NOTHING)
        log = query_columns(q, W, at, n, seen, f, features, d, D, FAVOR, MASK, LOW, PRECISION)
        some = (log_sum < -0.5 * NOTHING)[None, :]
        log = tl.where(some, log - log_sum[None, :], NOTHING)
        new = tl.maximum(top, tl.max(log, 1))
        p, old = tl.where(some, tl.exp2(log - new[:, None]), 0.0), tl.exp2(top - new)
        values = values * old[:, None] + mm(p, g, LOW, PRECISION)
        total = total * old + tl.sum(p * w[None, :], 1)
        top = new
    row = (bh * tl.num_programs(0) + s) * features
    store_sums(S, z, row, f, features, e, E, values, total)
    tl.store(c + row + f, top, mask=f < features)


@kernel
def scan_queries(
    S, z, c, G, w, shifts, segments, features,
    E: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """The sums behind each segment."""
    bh = tl.program_id(1).to(tl.int64)
    f, e = tl.program_id(0) * BF + tl.arange(0, BF), tl.arange(0, BE)
    values, total = tl.zeros((BF, BE), tl.float32), tl.zeros((BF,), tl.float32)
    top = tl.full((BF,), NOTHING, tl.float32)
    for i in range(segments):
        row = bh * segments + segments - 1 - i
        store_sums(G, w, row * features, f, features, e, E, values, total)
        tl.store(shifts + row * features + f, top, mask=f < features)
        own = load_features(c, row, f, features, NOTHING)
        new = tl.maximum(top, own)
        old, add = tl.exp2(top - new), tl.exp2(own - new)
        values = values * old[:, None] + load_sums(S, row, f, features, e, E) * add[:, None]
        total = total * old + load_features(z, row, f, features, 0.0) * add
        top = new
