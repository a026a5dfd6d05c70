"""Kernels of linear attention whose features are exponentials and reach no memory: FAVOR's, or of given logs.

What stands for all keys of a feature is the average of their values under its own softmax, and its log sum:

    A_f   = sum_j softmax_j(log phi_f(k_j)) v_j        L_f = log sum_j phi_f(k_j)
    out_i = sum_f softmax_f(log phi_f(q_i) + L_f) A_f

so that attention is two softmax attentions, of features to keys and of queries to features. Averages of
values and logarithms leave no format's range. Back, p_if and r_jf are the weights of the two, g_i is the
gradient of an output and w_i = -g_i . out_i:

    dlog phi_f(q_i) = p_if (g_i . A_f + w_i)        D_f  = sum_i p_if g_i        d_f = sum_i p_if w_i
    dlog phi_f(k_j) = r_jf (v_j . D_f + d_f)        dv_j = sum_f r_jf D_f

Totals are of weights as they are rounded to weigh values. Logarithms are of base 2, but for the shifts c of
sums. With FAVOR, log phi is x . W_f, for keys less |x|^2 times `half`; else logs are given.
"""
# branches on constants and Triton's tensors are beyond pyright
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false

import triton.language as tl

from subquad.ops.linear_attention.triton_feature_kernels import state_of, store_state
from subquad.ops.triton.launch import inlined, kernel
from subquad.ops.triton.products import LN2, LOG2E, NOTHING, mm
from subquad.ops.triton.tokens import finite_where_padding, head_of, load_rows, store_rows, token_mask


@inlined
def load_directions(W, f, features, d, D):
    mask = (f < features)[:, None] & (d < D)[None, :]
    return tl.load(W + f[:, None] * D + d[None, :], mask=mask, other=0.0)


@inlined
def projected(x, W, f, features, d, D, LOW: tl.constexpr, PRECISION: tl.constexpr):
    """x . W_f, a row a token. W has twice half precision's bits, since its errors are errors of exponents."""
    w = load_directions(W, f, features, d, D)
    if PRECISION == "ieee":  # of bfloat16
        high = w.to(LOW)
        low = tl.trans(w - high.to(tl.float32))
        return mm(x, tl.trans(high), LOW, PRECISION) + mm(x, low, LOW, PRECISION)
    else:
        return mm(x, tl.trans(w), LOW, PRECISION)


@inlined
def projected_columns(x, W, f, features, d, D, LOW: tl.constexpr, PRECISION: tl.constexpr):
    """The same, a column a token."""
    w = load_directions(W, f, features, d, D)
    if PRECISION == "ieee":
        high = w.to(LOW)
        low = w - high.to(tl.float32)
        return mm(high, tl.trans(x), LOW, PRECISION) + mm(low, tl.trans(x), LOW, PRECISION)
    else:
        return mm(w, tl.trans(x), LOW, PRECISION)


@inlined
def half_square(x, half):
    y = x.to(tl.float32)
    return tl.sum(y * y, 1) * half


@inlined
def query_rows(q, at, n, seen, c, width, MASK: tl.constexpr):
    x = load_rows(q, at, at < n, c, width)
    if MASK:
        x = finite_where_padding(x, seen)
    return x


@inlined
def query_logs(
    x, q, W, at, n, seen, f, features, d, D,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of base 2, a row a token; with FAVOR x are the queries, which have been read."""
    if FAVOR:
        log = projected(x, W, f, features, d, D, LOW, PRECISION)
    else:
        log = query_rows(q, at, n, seen, f, features, MASK).to(tl.float32)
    return tl.where((f < features)[None, :], log * LOG2E, NOTHING)


@inlined
def key_logs(
    x, norm, k, W, at, seen, f, features, d, D,
    FAVOR: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same of keys, whose `norm` is taken off with FAVOR."""
    if FAVOR:
        log = projected(x, W, f, features, d, D, LOW, PRECISION) - norm[:, None]
    else:
        log = load_rows(k, at, seen, f, features).to(tl.float32)
    return tl.where((f < features)[None, :], log * LOG2E, NOTHING)


@inlined
def query_columns(
    q, W, at, n, seen, f, features, d, D,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The logarithms of queries, a column a token."""
    if FAVOR:
        x = query_rows(q, at, n, seen, d, D, MASK)
        return projected_columns(x, W, f, features, d, D, LOW, PRECISION) * LOG2E
    else:
        return tl.trans(query_rows(q, at, n, seen, f, features, MASK).to(tl.float32)) * LOG2E


@inlined
def load_features(x, bh, f, features, other):
    """A number for each feature."""
    return tl.load(x + bh * features + f, mask=f < features, other=other)


@inlined
def load_sums(x, bh, f, features, e, E):
    """Numbers as wide as values, for each feature."""
    mask = (f < features)[:, None] & (e < E)[None, :]
    return tl.load(x + (bh * features + f)[:, None] * E + e[None, :], mask=mask, other=0.0)


@inlined
def store_sums(S, z, row, f, features, e, E, values, total):
    """Those of `features` features from `row` on."""
    mask = (f < features)[:, None] & (e < E)[None, :]
    tl.store(S + (row + f)[:, None] * E + e[None, :], values.to(S.dtype.element_ty), mask=mask)
    tl.store(z + row + f, total, mask=f < features)


@kernel
def key_sums(
    k, v, W, valid, S, z, c, half, n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of each segment: sums of values and of weights under shifts c, the largest natural logarithms."""
    s, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, v = head_of(k, bh, heads), head_of(v, bh, heads)
    d, e, f = tl.arange(0, BD), tl.arange(0, BE), tl.program_id(2) * BF + tl.arange(0, BF)
    values, total = tl.zeros((BF, BE), tl.float32), tl.zeros((BF,), tl.float32)
    top = tl.full((BF,), NOTHING, tl.float32)
    for i in range(segment // C):
        at = s * segment + i * C + tl.arange(0, C)
        seen = token_mask(valid, bh, heads, at, n, MASK)
        if FAVOR:
            x = load_rows(k, at, seen, d, D)
            log = projected_columns(x, W, f, features, d, D, LOW, PRECISION) - half_square(x, half)[None, :]
        else:
            log = tl.trans(load_rows(k, at, seen, f, features).to(tl.float32))
        log = tl.where(seen[None, :], log * LOG2E, NOTHING)
        new = tl.maximum(top, tl.max(log, 1))
        p, old = tl.where(seen[None, :], tl.exp2(log - new[:, None]), 0.0).to(LOW), tl.exp2(top - new)
        values = values * old[:, None] + mm(p, load_rows(v, at, seen, e, E), LOW, PRECISION)
        total = total * old + tl.sum(p.to(tl.float32), 1)
        top = new
    row = (bh * tl.num_programs(0) + s) * features
    store_sums(S, z, row, f, features, e, E, values, total)
    tl.store(c + row + f, top * LN2, mask=f < features)


@kernel
def merge(
    S, z, c, A, L, S1, z1, c1, segments, features,
    E: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The sums of all segments under common shifts, and their averages and log sums."""
    bh = tl.program_id(1).to(tl.int64)
    f, e, i = tl.program_id(0) * BF + tl.arange(0, BF), tl.arange(0, BE), tl.arange(0, PARTS)
    first = bh * segments * features
    rows = first + i[:, None] * features + f[None, :]
    mask = (i < segments)[:, None] & (f < features)[None, :]
    log = tl.load(c + rows, mask=mask, other=NOTHING) * LOG2E
    top = tl.max(log, 0)
    total = tl.sum(tl.load(z + rows, mask=mask, other=0.0) * tl.exp2(log - top[None, :]), 0)
    values = tl.zeros((BF, BE), tl.float32)
    for s in range(segments):
        own = tl.load(c + first + s * features + f, mask=f < features, other=NOTHING) * LOG2E
        values += load_sums(S, bh * segments + s, f, features, e, E) * tl.exp2(own - top)[:, None]
    some = tl.where(total > 0, total, 1.0)
    log_sum = tl.where(total > 0, top + tl.log2(some), NOTHING)
    store_sums(A, L, bh * features, f, features, e, E, values / some[:, None], log_sum)
    store_sums(S1, z1, bh * features, f, features, e, E, values, total)
    tl.store(c1 + bh * features + f, top * LN2, mask=f < features)


@kernel
def averages(
    q, W, valid, A, L, out, log_sums, n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1).to(tl.int64)
    q = head_of(q, bh, heads)
    d, e, at = tl.arange(0, BD), tl.arange(0, BE), tl.program_id(0) * C + tl.arange(0, C)
    seen = token_mask(valid, bh, heads, at, n, MASK)
    o, total = tl.zeros((C, BE), tl.float32), tl.zeros((C,), tl.float32)
    top = tl.full((C,), NOTHING, tl.float32)
    x = query_rows(q, at, n, seen, d, D, MASK) if FAVOR else at
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        log = query_logs(x, q, W, at, n, seen, f, features, d, D, FAVOR, MASK, LOW, PRECISION)
        log += load_features(L, bh, f, features, NOTHING)[None, :]
        new = tl.maximum(top, tl.max(log, 1))
        p, old = tl.exp2(log - new[:, None]).to(LOW), tl.exp2(top - new)
        o = o * old[:, None] + mm(p, load_sums(A, bh, f, features, e, E), LOW, PRECISION)
        total = total * old + tl.sum(p.to(tl.float32), 1)
        top = new
    some = tl.where(total > 0, total, 1.0)
    store_rows(head_of(out, bh, heads), at, at < n, e, E, o / some[:, None])
    tl.store(log_sums + bh * n + at, top + tl.log2(some), mask=at < n)


@kernel
def query_gradients(
    q, W, valid, A, L, out, grad, log_sums, dtotals, dq, n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes all w, too."""
    bh = tl.program_id(1).to(tl.int64)
    q, dq = head_of(q, bh, heads), head_of(dq, bh, heads)
    d, e, at = tl.arange(0, BD), tl.arange(0, BE), tl.program_id(0) * C + tl.arange(0, C)
    seen = token_mask(valid, bh, heads, at, n, MASK)
    g = load_rows(head_of(grad, bh, heads), at, at < n, e, E)
    w = -tl.sum(g.to(tl.float32) * load_rows(head_of(out, bh, heads), at, at < n, e, E).to(tl.float32), 1)
    tl.store(dtotals + bh * n + at, w, mask=at < n)
    log_sum = tl.load(log_sums + bh * n + at, mask=at < n, other=-NOTHING)
    x = query_rows(q, at, n, seen, d, D, MASK) if FAVOR else at
    dx = tl.zeros((C, BD), tl.float32)
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        log = query_logs(x, q, W, at, n, seen, f, features, d, D, FAVOR, MASK, LOW, PRECISION)
        p = tl.exp2(log + (load_features(L, bh, f, features, NOTHING)[None, :] - log_sum[:, None]))
        dlog = p * (mm(g, tl.trans(load_sums(A, bh, f, features, e, E)), LOW, PRECISION) + w[:, None])
        if FAVOR:
            dx += mm(dlog, load_directions(W, f, features, d, D), LOW, PRECISION)
        else:
            store_rows(dq, at, at < n, f, features, dlog)
    if FAVOR:
        store_rows(dq, at, at < n, d, D, dx)


@kernel
def query_sums(
    q, W, valid, L, grad, log_sums, dtotals, sums, n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of each segment: D and d."""
    s, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q, grad = head_of(q, bh, heads), head_of(grad, bh, heads)
    d, e, f = tl.arange(0, BD), tl.arange(0, BE), tl.program_id(2) * BF + tl.arange(0, BF)
    key_log = load_features(L, bh, f, features, NOTHING)
    values, total = tl.zeros((BF, BE), tl.float32), tl.zeros((BF,), tl.float32)
    for i in range(segment // C):
        at = s * segment + i * C + tl.arange(0, C)
        seen = token_mask(valid, bh, heads, at, n, MASK)
        log = query_columns(q, W, at, n, seen, f, features, d, D, FAVOR, MASK, LOW, PRECISION)
        log_sum = tl.load(log_sums + bh * n + at, mask=at < n, other=-NOTHING)
        w = tl.load(dtotals + bh * n + at, mask=at < n, other=0.0)
        p = tl.exp2(log + (key_log[:, None] - log_sum[None, :]))
        values += mm(p, load_rows(grad, at, at < n, e, E), LOW, PRECISION)
        total += tl.sum(p * w[None, :], 1)
    store_state(state_of(sums, bh, s), f, features, e, E, values, total)


@kernel
def key_gradients(
    k, v, W, valid, L, dS, dz, dk, dv, half, n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    FAVOR: tl.constexpr, MASK: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """And of values."""
    bh = tl.program_id(1).to(tl.int64)
    k, dk = head_of(k, bh, heads), head_of(dk, bh, heads)
    d, e, at = tl.arange(0, BD), tl.arange(0, BE), tl.program_id(0) * C + tl.arange(0, C)
    seen = token_mask(valid, bh, heads, at, n, MASK)
    y = load_rows(head_of(v, bh, heads), at, seen, e, E)
    dy = tl.zeros((C, BE), tl.float32)
    x = load_rows(k, at, seen, d, D) if FAVOR else at
    norm = half_square(x, half) if FAVOR else at
    dx, total = tl.zeros((C, BD), tl.float32), tl.zeros((C,), tl.float32)
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        log = key_logs(x, norm, k, W, at, seen, f, features, d, D, FAVOR, LOW, PRECISION)
        log -= load_features(L, bh, f, features, -NOTHING)[None, :]
        r = tl.exp2(tl.where(seen[:, None], log, NOTHING))
        S = load_sums(dS, bh, f, features, e, E)
        dy += mm(r, S, LOW, PRECISION)
        dlog = r * (mm(y, tl.trans(S), LOW, PRECISION) + load_features(dz, bh, f, features, 0.0)[None, :])
        if FAVOR:
            dx += mm(dlog, load_directions(W, f, features, d, D), LOW, PRECISION)
            total += tl.sum(dlog, 1)
        else:
            store_rows(dk, at, at < n, f, features, dlog)
    if FAVOR:
        dx -= total[:, None] * (2 * half) * x.to(tl.float32)
        store_rows(dk, at, at < n, d, D, dx)
    store_rows(head_of(dv, bh, heads), at, at < n, e, E, dy)
