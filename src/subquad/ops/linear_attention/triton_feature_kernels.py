"""Kernels of linear attention over features, any number of them: given, or elu + 1 made where they are read.

Causal attention has one state, the sums of all earlier keys, for each segment of tokens. A tile of queries
takes what lies before its segment from the state, and its own segment by products, tile by tile. Without
causality there is one state for all. `triton_features.py` launches them.

Gradients of averages are averages: with g and w, the gradients of a query's numerator and denominator,

    dphi(q_i) = sum_j (g_i . v_j + w_i) phi(k_j)        dphi(k_j) = sum_i (g_i . v_j + w_i) phi(q_i)
    dv_j      = sum_i (phi(q_i) . phi(k_j)) g_i

No first operand of a product is the transpose of another's result (`ops/triton/miscompiled.py`). ELU says
whether features are elu + 1 of the inputs, MASK whether there is padding, ONE whether all features are one
block, which then stays where it is from tile to tile. A state is a tuple: S, z, and the strides of head and
segment of either.
"""
# branches on constants and Triton's tensors are beyond pyright
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false

import triton.language as tl

from subquad.ops.triton.launch import inlined, kernel
from subquad.ops.triton.products import mm
from subquad.ops.triton.tokens import finite_where_padding, head_of, load_rows, store_rows, token_mask


@inlined
def elu(x):
    """elu(x) + 1, which does not round to zero."""
    return tl.exp(tl.minimum(x, 0.0)) + tl.maximum(x, 0.0)


@inlined
def key_features(k, at, seen, f, features, ELU: tl.constexpr, LOW: tl.constexpr):
    x = load_rows(k, at, seen, f, features)
    if ELU:
        x = tl.where(seen[:, None] & (f < features)[None, :], elu(x.to(tl.float32)), 0.0)
    return x.to(LOW)


@inlined
def query_features(q, at, n, seen, f, features, MASK: tl.constexpr, ELU: tl.constexpr, LOW: tl.constexpr):
    x = load_rows(q, at, at < n, f, features)
    if MASK:
        x = finite_where_padding(x, seen)
    if ELU:
        x = tl.where((at < n)[:, None] & (f < features)[None, :], elu(x.to(tl.float32)), 0.0)
    return x.to(LOW)


@inlined
def numerator_gradient(grad, denominators, at, n, e, E):
    """The gradient of outputs over denominators."""
    total = tl.load(denominators + at, mask=at < n, other=0.0)
    g = load_rows(grad, at, at < n, e, E).to(tl.float32)
    return tl.where((total == 0)[:, None], 0.0, g / tl.where(total == 0, 1.0, total)[:, None])


@inlined
def state_of(state, bh, s):
    """Where S and z of a segment are."""
    return state[0] + bh * state[2] + s * state[3], state[1] + bh * state[4] + s * state[5]


@inlined
def load_state(state, f, features, e, E):
    here = f < features
    mask = here[:, None] & (e < E)[None, :]
    S = tl.load(state[0] + f[:, None] * E + e[None, :], mask=mask, other=0.0)
    return S, tl.load(state[1] + f, mask=here, other=0.0)


@inlined
def store_state(state, f, features, e, E, S, z):
    here = f < features
    tl.store(state[0] + f[:, None] * E + e[None, :], S, mask=here[:, None] & (e < E)[None, :])
    tl.store(state[1] + f, z, mask=here)


@kernel
def key_sums(
    k, v, valid, sums, n, heads, features, segment,
    E: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BE: tl.constexpr,
    MASK: tl.constexpr, ELU: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of each segment: S = sum_j phi(k_j) v_j^T and z = sum_j phi(k_j)."""
    s, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, v = head_of(k, bh, heads), head_of(v, bh, heads)
    f, e = tl.program_id(2) * BF + tl.arange(0, BF), tl.arange(0, BE)
    S, z = tl.zeros((BF, BE), tl.float32), tl.zeros((BF,), tl.float32)
    for i in range(segment // C):
        at = s * segment + i * C + tl.arange(0, C)
        seen = token_mask(valid, bh, heads, at, n, MASK)
        phi = key_features(k, at, seen, f, features, ELU, LOW)
        S += mm(tl.trans(phi), load_rows(v, at, seen, e, E), LOW, PRECISION)
        z += tl.sum(phi.to(tl.float32), 0)
    store_state(state_of(sums, bh, s), f, features, e, E, S, z)


@kernel
def query_sums(
    q, out, grad, valid, denominators, dtotals, sums, n, heads, features, segment,
    E: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BE: tl.constexpr,
    MASK: tl.constexpr, ELU: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of each segment: S = sum_i phi(q_i) g_i^T and z = sum_i w_i phi(q_i); writes all w, too."""
    s, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q, out, grad = head_of(q, bh, heads), head_of(out, bh, heads), head_of(grad, bh, heads)
    f, e = tl.program_id(2) * BF + tl.arange(0, BF), tl.arange(0, BE)
    S, z = tl.zeros((BF, BE), tl.float32), tl.zeros((BF,), tl.float32)
    for i in range(segment // C):
        at = s * segment + i * C + tl.arange(0, C)
        seen = token_mask(valid, bh, heads, at, n, MASK)
        phi = query_features(q, at, n, seen, f, features, MASK, ELU, LOW)
        g = numerator_gradient(grad, denominators + bh * n, at, n, e, E).to(LOW)  # as it meets values
        w = -tl.sum(g.to(tl.float32) * load_rows(out, at, at < n, e, E).to(tl.float32), 1)
        if tl.program_id(2) == 0:
            tl.store(dtotals + bh * n + at, w, mask=at < n)
        S += mm(tl.trans(phi), g, LOW, PRECISION)
        z += tl.sum(phi.to(tl.float32) * w[:, None], 0)
    store_state(state_of(sums, bh, s), f, features, e, E, S, z)


@kernel
def scan(
    sums, S0, z0, states, S1, z1, segments, size, width,
    INITIAL: tl.constexpr, CAUSAL: tl.constexpr, REVERSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums before each segment, if CAUSAL, and those after the last; `size` of `width` numbers are S."""
    bh = tl.program_id(1).to(tl.int64)
    w, i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, ROWS)
    of_S, of_z = w < size, (w >= size) & (w < width)
    run = tl.zeros((BLOCK,), tl.float32)
    if INITIAL:
        run += tl.load(S0 + bh * size + w, mask=of_S, other=0.0)
        run += tl.load(z0 + bh * (width - size) + w - size, mask=of_z, other=0.0)
    column = bh * segments * width + w[None, :]
    for start in range(0, segments, ROWS):
        own, before = start + i, start + i - 1
        exists = (own < segments)[:, None] & (w < width)[None, :]
        if REVERSE:
            own, before = segments - 1 - own, segments - 1 - before
        x = tl.load(sums + own[:, None] * width + column, mask=exists, other=0.0)
        if CAUSAL:  # a sum less its last term would have lost what that drowned
            y = tl.load(sums + before[:, None] * width + column, mask=(i > 0)[:, None] & exists, other=0.0)
            tl.store(states + own[:, None] * width + column, run[None, :] + tl.cumsum(y, 0), mask=exists)
        run += tl.sum(x, 0)
    tl.store(S1 + bh * size + w, run, mask=of_S)
    tl.store(z1 + bh * (width - size) + w - size, run, mask=of_z)


@kernel
def averages(
    q, k, v, valid, states, out, denominators, n, heads, features, segment,
    E: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BE: tl.constexpr, ONE: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, ELU: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, bh = (
        tl.num_programs(0) - 1 - tl.program_id(0),
        tl.program_id(1).to(tl.int64),
    )  # those with most to do first
    q, k, v, out = (
        head_of(q, bh, heads),
        head_of(k, bh, heads),
        head_of(v, bh, heads),
        head_of(out, bh, heads),
    )
    e, i, all = tl.program_id(2) * BE + tl.arange(0, BE), tl.arange(0, C), tl.arange(0, BF)
    at = t * C + i
    seen = token_mask(valid, bh, heads, at, n, MASK)
    s = t * C // segment if CAUSAL else 0
    state = state_of(states, bh, s)
    o, total = tl.zeros((C, BE), tl.float32), tl.zeros((C,), tl.float32)
    for start in range(0, features, BF):
        f = start + all
        phi = query_features(q, at, n, seen, f, features, MASK, ELU, LOW)
        S, z = load_state(state, f, features, e, E)
        o += mm(phi, S, LOW, PRECISION)
        total += tl.sum(phi.to(tl.float32) * z[None, :], 1)
    if CAUSAL:
        if ONE:
            own = query_features(q, at, n, seen, all, features, MASK, ELU, LOW)
        for first in range(s * segment, t * C + C, C):
            past = first + i
            there = token_mask(valid, bh, heads, past, n, MASK)
            if ONE:
                A = mm(own, tl.trans(key_features(k, past, there, all, features, ELU, LOW)), LOW, PRECISION)
            else:
                A = tl.zeros((C, C), tl.float32)
                for start in range(0, features, BF):
                    x = query_features(q, at, n, seen, start + all, features, MASK, ELU, LOW)
                    y = key_features(k, past, there, start + all, features, ELU, LOW)
                    A += mm(x, tl.trans(y), LOW, PRECISION)
            A = tl.where(at[:, None] >= past[None, :], A, 0.0).to(LOW)  # which is what values are weighed by
            o += mm(A, load_rows(v, past, there, e, E), LOW, PRECISION)
            total += tl.sum(A.to(tl.float32), 1)
    store_rows(out, at, at < n, e, E, o / tl.where(total == 0, 1.0, total)[:, None])
    if tl.program_id(2) == 0:
        tl.store(denominators + bh * n + at, total, mask=at < n)


@kernel
def query_gradients(
    q, k, v, valid, states, grad, denominators, dtotals, dq, n, heads, features, segment,
    E: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BE: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, ELU: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, bh = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, v, grad = head_of(k, bh, heads), head_of(v, bh, heads), head_of(grad, bh, heads)
    f, e, i = tl.program_id(2) * BF + tl.arange(0, BF), tl.arange(0, BE), tl.arange(0, C)
    at = t * C + i
    s = t * C // segment if CAUSAL else 0
    g = numerator_gradient(grad, denominators + bh * n, at, n, e, E).to(LOW)
    w = tl.load(dtotals + bh * n + at, mask=at < n, other=0.0)
    S, z = load_state(state_of(states, bh, s), f, features, e, E)
    dphi = mm(g, tl.trans(S), LOW, PRECISION) + w[:, None] * z[None, :]
    if CAUSAL:
        for first in range(s * segment, t * C + C, C):
            past = first + i
            there = token_mask(valid, bh, heads, past, n, MASK)
            A = mm(g, tl.trans(load_rows(v, past, there, e, E)), LOW, PRECISION) + w[:, None]
            A = tl.where(at[:, None] >= past[None, :], A, 0.0)
            dphi += mm(A, key_features(k, past, there, f, features, ELU, LOW), LOW, PRECISION)
    if ELU:
        seen = token_mask(valid, bh, heads, at, n, MASK)
        phi = query_features(head_of(q, bh, heads), at, n, seen, f, features, MASK, ELU, tl.float32)
        dphi *= tl.minimum(phi, 1.0)
    store_rows(head_of(dq, bh, heads), at, at < n, f, features, dphi)


@kernel
def key_gradients(
    q, k, v, valid, states, grad, denominators, dtotals, dk, n, heads, features, segment,
    E: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BE: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, ELU: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q, k, v, grad = (
        head_of(q, bh, heads),
        head_of(k, bh, heads),
        head_of(v, bh, heads),
        head_of(grad, bh, heads),
    )
    f, e, i = tl.program_id(2) * BF + tl.arange(0, BF), tl.arange(0, BE), tl.arange(0, C)
    at = t * C + i
    seen = token_mask(valid, bh, heads, at, n, MASK)
    s = t * C // segment if CAUSAL else 0
    x = load_rows(v, at, seen, e, E)
    S, z = load_state(state_of(states, bh, s), f, features, e, E)
    dphi = mm(x, tl.trans(S), LOW, PRECISION) + z[None, :]
    if CAUSAL:
        for first in range(t * C, tl.minimum(s * segment + segment, n), C):
            later = first + i
            there = token_mask(valid, bh, heads, later, n, MASK)
            g = numerator_gradient(grad, denominators + bh * n, later, n, e, E).to(LOW)
            w = tl.load(dtotals + bh * n + later, mask=later < n, other=0.0)
            A = mm(x, tl.trans(g), LOW, PRECISION) + w[None, :]
            A = tl.where(at[:, None] <= later[None, :], A, 0.0)
            dphi += mm(A, query_features(q, later, n, there, f, features, MASK, ELU, LOW), LOW, PRECISION)
    if ELU:
        dphi *= tl.minimum(key_features(k, at, seen, f, features, ELU, tl.float32), 1.0)
    dphi = tl.where(seen[:, None], dphi, 0.0)
    store_rows(head_of(dk, bh, heads), at, at < n, f, features, dphi)


@kernel
def value_gradients(
    q, k, valid, states, grad, denominators, dv, n, heads, features, segment,
    E: tl.constexpr, C: tl.constexpr, BF: tl.constexpr, BE: tl.constexpr, ONE: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, ELU: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q, k, grad = head_of(q, bh, heads), head_of(k, bh, heads), head_of(grad, bh, heads)
    e, i, all = tl.program_id(2) * BE + tl.arange(0, BE), tl.arange(0, C), tl.arange(0, BF)
    at = t * C + i
    seen = token_mask(valid, bh, heads, at, n, MASK)
    s = t * C // segment if CAUSAL else 0
    state = state_of(states, bh, s)
    dv_own = tl.zeros((C, BE), tl.float32)
    for start in range(0, features, BF):
        S, _ = load_state(state, start + all, features, e, E)
        dv_own += mm(key_features(k, at, seen, start + all, features, ELU, LOW), S, LOW, PRECISION)
    if CAUSAL:
        if ONE:
            own = key_features(k, at, seen, all, features, ELU, LOW)
        for first in range(t * C, tl.minimum(s * segment + segment, n), C):
            later = first + i
            there = token_mask(valid, bh, heads, later, n, MASK)
            if ONE:
                y = query_features(q, later, n, there, all, features, MASK, ELU, LOW)
                A = mm(own, tl.trans(y), LOW, PRECISION)
            else:
                A = tl.zeros((C, C), tl.float32)
                for start in range(0, features, BF):
                    x = key_features(k, at, seen, start + all, features, ELU, LOW)
                    y = query_features(q, later, n, there, start + all, features, MASK, ELU, LOW)
                    A += mm(x, tl.trans(y), LOW, PRECISION)
            A = tl.where(at[:, None] <= later[None, :], A, 0.0)
            dv_own += mm(A, numerator_gradient(grad, denominators + bh * n, later, n, e, E), LOW, PRECISION)
    store_rows(head_of(dv, bh, heads), at, at < n, e, E, tl.where(seen[:, None], dv_own, 0.0))
