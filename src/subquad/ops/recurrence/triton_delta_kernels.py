"""The delta rule, as `ops/recurrence/delta_rule.py` has it, up to the values that it writes.

    solve      every chunk's system by itself: U = T beta v and W = T beta (what is left of S at k) k
    advance    from chunk to chunk, a program for each part of the values: u = U - W S, and S before each

after which the outputs are those of a matrix that fades, with u for v: `triton_decay_kernels.recall`.

T is inverted by doubling: where it inverts the systems of 2^l tokens each, T - T L T with the corners of L
between them inverts those of twice as many. That is no series of powers, so that keys which are alike cancel
nothing.
"""

import triton.language as tl

from subquad.ops.recurrence.triton_fading import (
    between,
    corners,
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

EXACT = tl.constexpr("tf32x3")  # in the inverse, whose errors the state takes on


@inlined
def inverse(system, C: tl.constexpr, LEVELS: tl.constexpr):
    """Of 1 + the strictly lower triangle of a matrix."""
    r = tl.arange(0, C)
    one = tl.where(r[:, None] == r[None, :], 1.0, 0.0)
    result = one - tl.where(corners(0, C, False), system, 0.0)
    for level in range(1, LEVELS):
        corner = tl.where(corners(level, C, False), -system, 0.0)
        result += mm(mm(result, corner, tl.float32, EXACT), result, tl.float32, EXACT)
    return result


@inlined
def load_rates(beta, at, n):
    return tl.load(beta[0] + at.to(tl.int64) * beta[1], mask=at < n, other=0.0).to(tl.float32)


@kernel
def solve(
    k, v, beta, decays, U, W, inverses, n, heads,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, KIND: tl.constexpr, KEEP: tl.constexpr, LOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """To KEEP: the inverses, for the way back."""
    bh = tl.program_id(1).to(tl.int64)
    k, v = head_of(k, bh, heads), head_of(v, bh, heads)
    beta, decays = head_of(beta, bh, heads), fading_of(decays, bh, heads)
    d, e, r = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, C)
    first, token = tl.program_id(0) * C, bh * n
    at = first + r
    logs, later = load_fading(decays, first, n, d, D, C, KIND)
    rates = load_rates(beta, at, n)
    keys = load_rows(k, at, at < n, d, D)
    alike = mm(keys, tl.trans(keys), LOW, PRECISION) * between(logs, later, C, KIND, False) * rates[:, None]
    T = inverse(alike, C, LEVELS)
    if KEEP:
        place = (bh * tl.num_programs(0) + tl.program_id(0)) * C * C
        tl.store(inverses + place + r[:, None] * C + r[None, :], T.to(inverses.dtype.element_ty))
    at += n >> 31  # 0: what is read there was in no register while T was made
    rates = load_rates(beta, at, n)
    values = load_rows(v, at, at < n, e, E) * rates[:, None]
    store_rows((U + token * E, E), at, at < n, e, E, mm(T, values, LOW, PRECISION))
    recalling = load_rows(k, at, at < n, d, D) * since_start(logs, later, KIND) * rates[:, None]
    store_rows((W + token * D, D), at, at < n, d, D, mm(T, recalling, LOW, PRECISION))


@kernel
def advance(
    k, decays, U, W, before, u, states, last, n, heads,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, C: tl.constexpr,
    KIND: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1).to(tl.int64)
    k, decays = head_of(k, bh, heads), fading_of(decays, bh, heads)
    U, W, u = U + bh * n * E, W + bh * n * D, u + bh * n * E
    d, e, r = tl.arange(0, BD), tl.program_id(0) * BE + tl.arange(0, BE), tl.arange(0, C)
    of_state, here = d[:, None] * E + e[None, :], (d < D)[:, None] & (e < E)[None, :]
    state = tl.load(before + bh * D * E + of_state, mask=here, other=0.0)
    chunks = tl.cdiv(n, C)
    for chunk in range(chunks):
        at = chunk * C + r
        tl.store(
            states + (bh * chunks + chunk) * D * E + of_state, state.to(states.dtype.element_ty), mask=here
        )
        logs, later = load_fading(decays, chunk * C, n, d, D, C, KIND)
        recalling = load_rows((W, D), at, at < n, d, D)
        values = load_rows((U, E), at, at < n, e, E) - mm(recalling, state, LOW, PRECISION)
        store_rows((u, E), at, at < n, e, E, values)
        keys = load_rows(k, at, at < n, d, D) * until_end(logs, later, KIND)
        state = faded(state, log_of_chunk(logs, later, KIND), KIND) + mm(
            tl.trans(keys.to(LOW)), values, LOW, PRECISION
        )
    tl.store(last + bh * D * E + of_state, state, mask=here)
