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
from subquad.ops.triton.launch import kernel
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
    grad = head_of(grad, bh, heads)
    beta, decays = head_of(beta, bh, heads), fading_of(decays, bh, heads)
    d, e, r = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, C)
    first = tl.program_id(0) * C
    at = first + r
    of_state, here = d[:, None] * E + e[None, :], (d < D)[:, None] & (e < E)[None, :]
    place = states + (bh * tl.num_programs(0) + tl.program_id(0)) * D * E + of_state
    state = tl.load(place, mask=here, other=0.0)
    logs, later = load_fading(decays, first, n, d, D, C, KIND)
    rates = load_rates(beta, at, n)
    since, left = since_start(logs, later, KIND), between(logs, later, C, KIND, False)
    keys, grads = load_rows(k, at, at < n, d, D), load_rows(grad, at, at < n, e, E)
    written = load_rows((u + token * E, E), at, at < n, e, E)
    queries = load_rows(q, at, at < n, d, D)
    numbers = mm(grads, tl.trans(state.to(LOW)), LOW, PRECISION) * since
    if LEARNT:
        through = tl.sum(queries * numbers, 1)
    pairs = mm(grads, tl.trans(written.to(LOW)), LOW, PRECISION) * left
    numbers += mm(pairs, keys, LOW, PRECISION)
    store_rows((dq + token * D, D), at, at < n, d, D, numbers)
    if LEARNT:
        terms = pairs * mm(queries, tl.trans(keys), LOW, PRECISION)
    right = load_rows((solved + token * E, E), at, at < n, e, E).to(tl.float32)
    change = right * rates[:, None]
    store_rows((dv + token * E, E), at, at < n, e, E, change)
    if LEARNT:
        through -= tl.sum(keys * mm(change, tl.trans(state.to(LOW)), LOW, PRECISION) * since, 1)
    system = (
        mm(right, tl.trans(written.to(LOW)), LOW, PRECISION) * mm(keys, tl.trans(keys), LOW, PRECISION) * left
    )
    system = tl.where(r[:, None] > r[None, :], system, 0.0)
    lacking = load_rows(v, at, at < n, e, E) - mm(keys * since, state, LOW, PRECISION)
    tl.store(dbeta + token + at, tl.sum(right * lacking, 1) - tl.sum(system, 1), mask=at < n)
    if LEARNT:
        terms = tl.cumsum(terms - system * rates[:, None], 0, reverse=True)
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
    token = bh * n
    q, k, grad = head_of(q, bh, heads), head_of(k, bh, heads), head_of(grad, bh, heads)
    beta, decays = head_of(beta, bh, heads), fading_of(decays, bh, heads)
    d, e, r = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, C)
    first = tl.program_id(0) * C
    at = first + r
    here = (d < D)[:, None] & (e < E)[None, :]
    of_state = (bh * tl.num_programs(0) + tl.program_id(0)) * D * E + d[:, None] * E + e[None, :]
    state = tl.load(states + of_state, mask=here, other=0.0)
    gradient = tl.load(gradients + of_state, mask=here, other=0.0)
    logs, later = load_fading(decays, first, n, d, D, C, KIND)
    written = load_rows((u + token * E, E), at, at < n, e, E).to(LOW)
    numbers = mm(written, tl.trans(gradient.to(LOW)), LOW, PRECISION) * until_end(logs, later, KIND)
    keys = load_rows(k, at, at < n, d, D)
    if LEARNT:
        met = tl.sum(tl.sum(state.to(tl.float32) * gradient.to(tl.float32), 1), 0)
        through = tl.sum(keys * numbers, 1)
        through = tl.cumsum(through, 0) - through + met * tl.exp(log_of_chunk(logs, later, KIND))
        through += tl.load(flow + token + at, mask=at < n, other=0.0)
        tl.store(flow + token + at, through, mask=at < n)
    change = load_rows((solved + token * E, E), at, at < n, e, E) * load_rates(beta, at, n)[:, None]
    change = change.to(LOW)
    numbers -= mm(change, tl.trans(state.to(LOW)), LOW, PRECISION) * since_start(logs, later, KIND)
    pairs = mm(change, tl.trans(written), LOW, PRECISION) * between(logs, later, C, KIND, False)
    numbers -= mm(tl.where(r[:, None] > r[None, :], pairs, 0.0), keys, LOW, PRECISION)
    left = between(logs, later, C, KIND, True)
    pairs = mm(written, tl.trans(change), LOW, PRECISION) * left
    numbers -= mm(tl.where(r[:, None] < r[None, :], pairs, 0.0), keys, LOW, PRECISION)
    pairs = mm(written, tl.trans(load_rows(grad, at, at < n, e, E)), LOW, PRECISION) * left
    numbers += mm(pairs, load_rows(q, at, at < n, d, D), LOW, PRECISION)
    store_rows((dk + token * D, D), at, at < n, d, D, numbers)
