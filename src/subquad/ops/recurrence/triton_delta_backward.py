"""The gradients of the delta rule: what goes from chunk to chunk is little, the rest is every chunk's own.

    solve_back      T^T of the gradients of u within a chunk, and W' = T^T (what is left of k at its end)
    advance_back    from the last chunk to the first: `solved`, the gradients of the systems' right sides, and
                    R, that of the state after each chunk
    of_queries      dq, dv, d beta, and the flow through decays that ends in queries
    of_keys         dk, and the other flow

T^T is T, read the other way round: see `triton_fading.weights`.
"""

# branches are on constants, and Triton's tensors have no types:
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false

import triton.language as tl

from subquad.ops.recurrence.triton_delta_kernels import load_rates
from subquad.ops.recurrence.triton_fading import (
    between,
    faded,
    fading_of,
    load_fading,
    log_of_chunk,
    since_start,
    until_end,
)
from subquad.ops.triton.launch import inlined, kernel
from subquad.ops.triton.products import mm
from subquad.ops.triton.tokens import head_of, load_rows, store_rows


@kernel
def solve_back(
    q, k, decays, grad, inverses, U, W, n, heads,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, C: tl.constexpr,
    KIND: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1).to(tl.int64)
    q, k = head_of(q, bh, heads), head_of(k, bh, heads)
    decays, grad = fading_of(decays, bh, heads), head_of(grad, bh, heads)
    d, e, r = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, C)
    first, token = tl.program_id(0) * C, bh * n
    at = first + r
    place = inverses + (bh * tl.num_programs(0) + tl.program_id(0)) * C * C
    turned = tl.load(place + r[None, :] * C + r[:, None])
    logs, later = load_fading(decays, first, n, d, D, C, KIND)
    keys = load_rows(k, at, at < n, d, D)
    kept = keys * until_end(logs, later, KIND)
    store_rows((W + token * D, D), at, at < n, d, D, mm(turned, kept, LOW, PRECISION))
    queries = load_rows(q, at, at < n, d, D)
    weights = mm(keys, tl.trans(queries), LOW, PRECISION) * between(logs, later, C, KIND, True)
    of_u = mm(weights, load_rows(grad, at, at < n, e, E), LOW, PRECISION)
    store_rows((U + token * E, E), at, at < n, e, E, mm(turned, of_u, LOW, PRECISION))


@kernel
def advance_back(
    q, k, beta, decays, grad, U, W, after, solved, gradients, first_gradient, n, heads,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, C: tl.constexpr,
    KIND: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1).to(tl.int64)
    q, k, grad = head_of(q, bh, heads), head_of(k, bh, heads), head_of(grad, bh, heads)
    beta, decays = head_of(beta, bh, heads), fading_of(decays, bh, heads)
    U, W, solved = U + bh * n * E, W + bh * n * D, solved + bh * n * E
    d, e, r = tl.arange(0, BD), tl.program_id(0) * BE + tl.arange(0, BE), tl.arange(0, C)
    of_state, here = d[:, None] * E + e[None, :], (d < D)[:, None] & (e < E)[None, :]
    state = tl.load(after + bh * D * E + of_state, mask=here, other=0.0)
    chunks = tl.cdiv(n, C)
    for i in range(chunks):
        chunk = chunks - 1 - i
        at = chunk * C + r
        place = gradients + (bh * chunks + chunk) * D * E + of_state
        tl.store(place, state.to(gradients.dtype.element_ty), mask=here)
        logs, later = load_fading(decays, chunk * C, n, d, D, C, KIND)
        kept = load_rows((W, D), at, at < n, d, D)
        values = load_rows((U, E), at, at < n, e, E) + mm(kept, state, LOW, PRECISION)
        store_rows((solved, E), at, at < n, e, E, values)
        since = since_start(logs, later, KIND)
        queries = load_rows(q, at, at < n, d, D) * since
        recalling = load_rows(k, at, at < n, d, D) * since * load_rates(beta, at, n)[:, None]
        of_outputs = mm(tl.trans(queries.to(LOW)), load_rows(grad, at, at < n, e, E), LOW, PRECISION)
        of_system = mm(tl.trans(recalling.to(LOW)), values, LOW, PRECISION)
        state = faded(state, log_of_chunk(logs, later, KIND), KIND) + of_outputs - of_system
    tl.store(first_gradient + bh * D * E + of_state, state, mask=here)


@inlined
def load_tile(state, d, D, e, E):
    """The rows d and columns e of a chunk's state."""
    mask = (d < D)[:, None] & (e < E)[None, :]
    return tl.load(state + d[:, None] * E + e[None, :], mask=mask, other=0.0)


@kernel
def of_queries(
    q, k, v, u, beta, decays, grad, solved, states, dq, dv, dbeta, flow, n, heads,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, C: tl.constexpr,
    KIND: tl.constexpr, LEARNT: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Results are dense."""
    bh = tl.program_id(1).to(tl.int64)
    token = bh * n
    q, k, v = head_of(q, bh, heads), head_of(k, bh, heads), head_of(v, bh, heads)
    grad, beta, decays = head_of(grad, bh, heads), head_of(beta, bh, heads), fading_of(decays, bh, heads)
    u, solved = (u + token * E, E), (solved + token * E, E)
    states += (bh * tl.num_programs(0) + tl.program_id(0)) * D * E
    r, first = tl.arange(0, C), tl.program_id(0) * C
    at = first + r
    logs, later = load_fading(decays, first, n, r, D, C, KIND)
    rates, since = load_rates(beta, at, n), since_start(logs, later, KIND)
    left = between(logs, later, C, KIND, False)
    pairs, system = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    of_rates = tl.zeros((C,), tl.float32)
    for value in range(0, E, BE):
        e = value + tl.arange(0, BE)
        written = tl.trans(load_rows(u, at, at < n, e, E).to(LOW))
        right = load_rows(solved, at, at < n, e, E).to(tl.float32)
        store_rows((dv + token * E, E), at, at < n, e, E, right * rates[:, None])
        pairs += mm(load_rows(grad, at, at < n, e, E), written, LOW, PRECISION)
        system += mm(right, written, LOW, PRECISION)
        lacking = load_rows(v, at, at < n, e, E).to(tl.float32)
        for channel in range(0, D, BD):
            d = channel + tl.arange(0, BD)
            state = load_tile(states, d, D, e, E)
            lacking -= mm(load_rows(k, at, at < n, d, D) * since, state, LOW, PRECISION)
        of_rates += tl.sum(right * lacking, 1)
    pairs *= left
    alike, scores = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    through = tl.zeros((C,), tl.float32)
    for channel in range(0, D, BD):
        d = channel + tl.arange(0, BD)
        numbers, of_recalling = tl.zeros((C, BD), tl.float32), tl.zeros((C, BD), tl.float32)
        for value in range(0, E, BE):
            e = value + tl.arange(0, BE)
            state = tl.trans(load_tile(states, d, D, e, E).to(LOW))
            numbers += mm(load_rows(grad, at, at < n, e, E), state, LOW, PRECISION)
            if LEARNT:
                change = load_rows(solved, at, at < n, e, E) * rates[:, None]
                of_recalling += mm(change, state, LOW, PRECISION)
        numbers *= since
        keys = load_rows(k, at, at < n, d, D)
        alike += mm(keys, tl.trans(keys), LOW, PRECISION)
        if LEARNT:
            queries = load_rows(q, at, at < n, d, D)
            through += tl.sum(queries * numbers, 1) - tl.sum(keys * of_recalling * since, 1)
            scores += mm(queries, tl.trans(keys), LOW, PRECISION)
        numbers += mm(pairs, keys, LOW, PRECISION)
        store_rows((dq + token * D, D), at, at < n, d, D, numbers)
    system = tl.where(r[:, None] > r[None, :], system * alike * left, 0.0)
    tl.store(dbeta + token + at, of_rates - tl.sum(system, 1), mask=at < n)
    if LEARNT:
        terms = tl.cumsum(pairs * scores - system * rates[:, None], 0, reverse=True)
        through = tl.cumsum(through, 0, reverse=True)
        through += tl.sum(tl.where(r[:, None] > r[None, :], terms, 0.0), 1)
        tl.store(flow + token + at, through, mask=at < n)


@kernel
def of_keys(
    q, k, u, beta, decays, grad, solved, states, gradients, dk, flow, n, heads,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, C: tl.constexpr,
    KIND: tl.constexpr, LEARNT: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Results are dense; to the flow is added."""
    bh = tl.program_id(1).to(tl.int64)
    token, place = bh * n, (bh * tl.num_programs(0) + tl.program_id(0)) * D * E
    q, k, grad = head_of(q, bh, heads), head_of(k, bh, heads), head_of(grad, bh, heads)
    beta, decays = head_of(beta, bh, heads), fading_of(decays, bh, heads)
    u, solved = (u + token * E, E), (solved + token * E, E)
    r, first = tl.arange(0, C), tl.program_id(0) * C
    at = first + r
    logs, later = load_fading(decays, first, n, r, D, C, KIND)
    rates = load_rates(beta, at, n)
    of_earlier, of_later = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    of_reads = tl.zeros((C, C), tl.float32)
    for value in range(0, E, BE):
        e = value + tl.arange(0, BE)
        written = load_rows(u, at, at < n, e, E).to(LOW)
        change = (load_rows(solved, at, at < n, e, E) * rates[:, None]).to(LOW)
        of_earlier += mm(change, tl.trans(written), LOW, PRECISION)
        of_later += mm(written, tl.trans(change), LOW, PRECISION)
        of_reads += mm(written, tl.trans(load_rows(grad, at, at < n, e, E)), LOW, PRECISION)
    of_earlier *= between(logs, later, C, KIND, False)
    left = between(logs, later, C, KIND, True)
    of_keys = tl.where(r[:, None] > r[None, :], of_earlier, 0.0)
    of_keys += tl.where(r[:, None] < r[None, :], of_later * left, 0.0)
    of_reads *= left
    through, met = tl.zeros((C,), tl.float32), tl.zeros((BD,), tl.float32)
    for channel in range(0, D, BD):
        d = channel + tl.arange(0, BD)
        numbers, lost = tl.zeros((C, BD), tl.float32), tl.zeros((C, BD), tl.float32)
        for value in range(0, E, BE):
            e = value + tl.arange(0, BE)
            state = load_tile(states + place, d, D, e, E)
            gradient = load_tile(gradients + place, d, D, e, E)
            if LEARNT:
                met += tl.sum(state.to(tl.float32) * gradient.to(tl.float32), 1)
            written = load_rows(u, at, at < n, e, E)
            numbers += mm(written, tl.trans(gradient.to(LOW)), LOW, PRECISION)
            change = load_rows(solved, at, at < n, e, E) * rates[:, None]
            lost += mm(change, tl.trans(state.to(LOW)), LOW, PRECISION)
        numbers *= until_end(logs, later, KIND)
        keys = load_rows(k, at, at < n, d, D)
        if LEARNT:
            through += tl.sum(keys * numbers, 1)
        numbers -= lost * since_start(logs, later, KIND) + mm(of_keys, keys, LOW, PRECISION)
        numbers += mm(of_reads, load_rows(q, at, at < n, d, D), LOW, PRECISION)
        store_rows((dk + token * D, D), at, at < n, d, D, numbers)
    if LEARNT:
        through = tl.cumsum(through, 0) - through
        through += tl.sum(met, 0) * tl.exp(log_of_chunk(logs, later, KIND))
        through += tl.load(flow + token + at, mask=at < n, other=0.0)
        tl.store(flow + token + at, through, mask=at < n)
