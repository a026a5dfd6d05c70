"""Kernels of attention within buckets: each adds one round to what earlier rounds have found.

Programs take tiles of sorted places. Tokens stay where they lie: `order` names the token at each place, and
rows are read and written by that name, which no other program of a launch has. `labels` are tokens', of every
round; a chunk has `chunk` places. A round goes on with the softmax of those before it, whose averages and log
sums lie with the tokens:

    out_i = sum_j p_ij v_j           p_ij = exp(s_ij - lse_i)        s_ij = scale q_i . k_j
    ds_ij = p_ij (g_i . v_j - w_i)   w_i = g_i . out_i               g: the gradient of out
    dq_i  = scale sum_j ds_ij k_j    dk_j = scale sum_i ds_ij q_i    dv_j = sum_i p_ij g_i

A token that sees itself alone gets its own value, so that no gradient goes to the constant that is its score.
"""
# branches on constants and Triton's tensors are beyond pyright
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false

import triton.language as tl

from subquad.ops.bucket_attention.rounds import ALONE
from subquad.ops.triton.launch import inlined, kernel
from subquad.ops.triton.products import NOTHING, mm
from subquad.ops.triton.tokens import head_of, load_rows, store_rows

SELF = tl.constexpr(ALONE)  # the score of a token with itself


@inlined
def of_head(order, labels, bh, rounds, round, n):
    """This round's order, and the labels of the first."""
    first = bh * rounds * n
    return order + first + round * n, labels + first


@inlined
def token_at(order, place, n):
    return tl.load(order + place, mask=place < n, other=0).to(tl.int32)


@inlined
def near(labels, i, query, j, key, n, AXIS: tl.constexpr):
    """Where the labels of queries i and keys j differ by 0 or 1; keys lie along AXIS."""
    label = tl.load(labels + i, mask=query < n, other=0)
    other = tl.load(labels + j, mask=key < n, other=0)
    back = tl.expand_dims(label, AXIS) - tl.expand_dims(other, 1 - AXIS)
    return (back >> 1) == 0


@inlined
def nearest_keys(start, chunk, n, LENGTH: tl.constexpr, LAST: tl.constexpr):
    """Where the places begin and end of keys that queries at `start` and behind it may see."""
    if LAST:
        return tl.maximum(start - chunk + 1, 0), tl.minimum(start + LENGTH, n)
    else:
        end = ((start + LENGTH - 1) // chunk + 1) * chunk
        return tl.maximum(start // chunk - 1, 0) * chunk, tl.minimum(end, n)


@inlined
def nearest_queries(start, chunk, n, LENGTH: tl.constexpr, LAST: tl.constexpr):
    """The same of queries that may see keys."""
    if LAST:
        return start, tl.minimum(start + LENGTH + chunk - 1, n)
    else:
        return start // chunk * chunk, tl.minimum(((start + LENGTH - 1) // chunk + 2) * chunk, n)


@inlined
def masked(
    scores, labels, i, query, j, key, round, n, chunk, AXIS: tl.constexpr,
    CAUSAL: tl.constexpr, LAST: tl.constexpr, ALONE_ONLY: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """Scores of queries i at places `query` with keys j at places `key`, which lie along AXIS, 0 or 1."""
    token, other = tl.expand_dims(i, AXIS), tl.expand_dims(j, 1 - AXIS)
    at, source = tl.expand_dims(query, AXIS), tl.expand_dims(key, 1 - AXIS)
    back = tl.expand_dims(query // chunk, AXIS) - tl.expand_dims(key // chunk, 1 - AXIS)
    seen = near(labels + round * n, i, query, j, key, n, AXIS)
    seen = seen & ((back >> 1) == 0) & (at < n) & (source < n)
    if CAUSAL:
        seen = seen & (other <= token)
    if LAST:
        seen = seen & (at >= source) & (at < source + chunk)
    if ALONE_ONLY:
        scores = tl.where(token == other, SELF, scores)
    scores = tl.where(seen, scores, NOTHING)
    if ONCE:
        for earlier in range(round):
            scores = tl.where(near(labels + earlier * n, i, query, j, key, n, AXIS), NOTHING, scores)
    return scores


@kernel
def add_outputs(
    q, k, v, order, labels, out, lse, scale, n, heads, rounds, round, chunk,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, LAST: tl.constexpr, ALONE_ONLY: tl.constexpr, ONCE: tl.constexpr,
    LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    start, bh = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    order, labels = of_head(order, labels, bh, rounds, round, n)
    q, k, v = head_of(q, bh, heads), head_of(k, bh, heads), head_of(v, bh, heads)
    d, e, place, out = tl.arange(0, BD), tl.arange(0, BE), start + tl.arange(0, M), head_of(out, bh, heads)
    i, before = token_at(order, place, n), place < n * tl.minimum(round, 1)
    x = load_rows(q, i, place < n, d, D)
    o, total = load_rows(out, i, before, e, E), tl.where(before, 1.0, 0.0)
    top = tl.load(lse + bh * n + i, mask=before, other=NOTHING)
    first, end = nearest_keys(start, chunk, n, M, LAST)
    for at in range(first, end, N):
        key = at + tl.arange(0, N)
        j = token_at(order, key, n)
        s = mm(x, tl.trans(load_rows(k, j, key < n, d, D)), LOW, PRECISION) * scale
        s = masked(s, labels, i, place, j, key, round, n, chunk, 1, CAUSAL, LAST, ALONE_ONLY, ONCE)
        new = tl.maximum(top, tl.max(s, 1))
        p, old = tl.exp(s - new[:, None]).to(LOW), tl.exp(top - new)
        o = o * old[:, None] + mm(p, load_rows(v, j, key < n, e, E), LOW, PRECISION)
        total = total * old + tl.sum(p.to(tl.float32), 1)
        top = new
    store_rows(out, i, place < n, e, E, o / total[:, None])
    tl.store(lse + bh * n + i, top + tl.log(total), mask=place < n)


@kernel
def add_query_gradients(
    q, k, v, order, labels, out, grad, lse, w, dq, scale, n, heads, rounds, round, chunk,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, LAST: tl.constexpr, ALONE_ONLY: tl.constexpr, ONCE: tl.constexpr,
    LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The first round writes all w, too."""
    start, bh = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    order, labels = of_head(order, labels, bh, rounds, round, n)
    q, k, v = head_of(q, bh, heads), head_of(k, bh, heads), head_of(v, bh, heads)
    d, e, place, dq = tl.arange(0, BD), tl.arange(0, BE), start + tl.arange(0, M), head_of(dq, bh, heads)
    i, before = token_at(order, place, n), place < n * tl.minimum(round, 1)
    x, g = load_rows(q, i, place < n, d, D), load_rows(head_of(grad, bh, heads), i, place < n, e, E)
    top = tl.load(lse + bh * n + i, mask=place < n, other=0.0)
    o = load_rows(head_of(out, bh, heads), i, place < n * (1 - tl.minimum(round, 1)), e, E)
    own = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1) + tl.load(w + bh * n + i, mask=before, other=0.0)
    tl.store(w + bh * n + i, own, mask=place < n)
    dx = tl.zeros((M, BD), tl.float32)
    first, end = nearest_keys(start, chunk, n, M, LAST)
    for at in range(first, end, N):
        key = at + tl.arange(0, N)
        j = token_at(order, key, n)
        y = load_rows(k, j, key < n, d, D)
        s = mm(x, tl.trans(y), LOW, PRECISION) * scale
        s = masked(s, labels, i, place, j, key, round, n, chunk, 1, CAUSAL, LAST, ALONE_ONLY, ONCE)
        ds = mm(g, tl.trans(load_rows(v, j, key < n, e, E)), LOW, PRECISION) - own[:, None]
        ds *= tl.exp(s - top[:, None])
        dx += mm(ds, y, LOW, PRECISION)
    store_rows(dq, i, place < n, d, D, load_rows(dq, i, before, d, D) + scale * dx)


@kernel
def add_key_gradients(
    q, k, v, order, labels, grad, lse, w, dk, dv, scale, n, heads, rounds, round, chunk,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, LAST: tl.constexpr, ALONE_ONLY: tl.constexpr, ONCE: tl.constexpr,
    LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """And of values. Scores lie the other way round, a key a row."""
    start, bh = tl.program_id(0) * N, tl.program_id(1).to(tl.int64)
    order, labels = of_head(order, labels, bh, rounds, round, n)
    q, k, v = head_of(q, bh, heads), head_of(k, bh, heads), head_of(v, bh, heads)
    d, e, key, grad = tl.arange(0, BD), tl.arange(0, BE), start + tl.arange(0, N), head_of(grad, bh, heads)
    j, before = token_at(order, key, n), key < n * tl.minimum(round, 1)
    y, z = load_rows(k, j, key < n, d, D), load_rows(v, j, key < n, e, E)
    dy, dz = tl.zeros((N, BD), tl.float32), tl.zeros((N, BE), tl.float32)
    first, end = nearest_queries(start, chunk, n, N, LAST)
    for at in range(first, end, M):
        place = at + tl.arange(0, M)
        i = token_at(order, place, n)
        x, g = load_rows(q, i, place < n, d, D), load_rows(grad, i, place < n, e, E)
        s = mm(y, tl.trans(x), LOW, PRECISION) * scale
        s = masked(s, labels, i, place, j, key, round, n, chunk, 0, CAUSAL, LAST, ALONE_ONLY, ONCE)
        p = tl.exp(s - tl.load(lse + bh * n + i, mask=place < n, other=0.0)[None, :])
        dz += mm(p, g, LOW, PRECISION)
        own = tl.load(w + bh * n + i, mask=place < n, other=0.0)
        dy += mm(p * (mm(z, tl.trans(g), LOW, PRECISION) - own[None, :]), x, LOW, PRECISION)
    dk, dv = head_of(dk, bh, heads), head_of(dv, bh, heads)
    store_rows(dk, j, key < n, d, D, load_rows(dk, j, before, d, D) + scale * dy)
    store_rows(dv, j, key < n, e, E, load_rows(dv, j, before, e, E) + dz)
