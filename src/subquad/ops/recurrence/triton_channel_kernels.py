"""The gradients of queries, keys and decays where each channel of a key fades by itself.

    dq_i = sum_(j <= i) a_ij k_j (grad_i . v_j)        and, of earlier chunks, a_i (S grad_i)
    dk_j = sum_(i >= j) a_ij q_i (v_j . grad_i)        and, of later chunks, what is left of R v_j

by halves, as in `decay.py`: for parts of 1, 2, 4, ... tokens the queries of every second part and the keys of
the part before it are one product, of factors that are at most one. Products over the whole chunk, with zeros
where there are no such pairs, are faster on tensor cores than triangles in registers.

The gradient of a decay is the flow through it: of all that was written before and is read after, each term
once.
"""

# branches are on constants, and Triton's tensors have no types:
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false

import triton.language as tl

from subquad.ops.recurrence.triton_fading import (
    corners,
    faded,
    fading_of,
    in_parts,
    left_at_reads,
    left_at_writes,
    load_fading,
    log_of_chunk,
    sums_in_parts,
)
from subquad.ops.triton.launch import kernel
from subquad.ops.triton.products import mm
from subquad.ops.triton.tokens import head_of, load_rows, store_rows

CHANNEL = tl.constexpr("channel")


@kernel
def read_channels(
    x, y, z, own, decays, states, gradients, out, flow, n, heads, chunks,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, LEARNT: tl.constexpr, REVERSE: tl.constexpr, LOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of x = grad, y = v, z = k, own = q; REVERSE, dk of x = v, y = grad, z = q, own = k.

    dk comes first, and leaves in `gradients` those of the states after all chunks; dq adds to its flow.
    """
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x, y, z = head_of(x, bh, heads), head_of(y, bh, heads), head_of(z, bh, heads)
    own, decays = head_of(own, bh, heads), fading_of(decays, bh, heads)
    out, flow = head_of(out, bh, heads), head_of(flow, bh, heads)
    d, e, r = tl.program_id(2) * BD + tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, C)
    of_state, here = d[:, None] * E + e[None, :], (d < D)[:, None] & (e < E)[None, :]
    place = bh * tl.num_programs(0) + block
    state = tl.load(states + place * D * E + of_state, mask=here, other=0.0)
    for i in range(chunks):
        chunk = chunks - 1 - i if REVERSE else i
        first = (block * chunks + chunk) * C
        at = first + r
        if LEARNT:
            met = gradients + (place * chunks + chunk) * D * E + of_state
            if REVERSE:
                tl.store(met, state.to(gradients.dtype.element_ty), mask=here)
            else:
                through = tl.sum(state * tl.load(met, mask=here, other=0.0).to(tl.float32), 1)
        logs, later = load_fading(decays, first, n, d, D, C, CHANNEL)
        rows_x = load_rows(x, at, at < n, e, E)
        rows_y = load_rows(y, at, at < n, e, E)
        rows_z = load_rows(z, at, at < n, d, D).to(tl.float32)
        pairs = mm(rows_x, tl.trans(rows_y), LOW, PRECISION)
        numbers = mm(rows_x, tl.trans(state.to(LOW)), LOW, PRECISION)
        numbers *= left_at_reads(logs, later, CHANNEL, REVERSE)
        if LEARNT:
            rows_own = load_rows(own, at, at < n, d, D).to(tl.float32)
            terms = rows_own * numbers
            if REVERSE:  # of what was written before a decay, not with it
                terms = tl.cumsum(terms, 0) - terms
            else:
                terms = (
                    tl.cumsum(terms, 0, reverse=True)
                    + (through * tl.exp(log_of_chunk(logs, later, CHANNEL)))[None, :]
                )
        numbers += tl.sum(tl.where(r[:, None] == r[None, :], pairs, 0.0), 1)[:, None] * rows_z
        for level in range(LEVELS):
            start, end = in_parts(logs, later, level, C)
            near = tl.where(corners(level, C, REVERSE), pairs, 0.0)
            if REVERSE:
                part = mm(near, rows_z * start, LOW, PRECISION) * end
            else:
                part = mm(near, rows_z * end, LOW, PRECISION) * start
            numbers += part
            if LEARNT:
                part *= rows_own
                if REVERSE:
                    terms += sums_in_parts(part, level, C, False) - part
                else:
                    terms += sums_in_parts(part, level, C, True)
        store_rows(out, at, at < n, d, D, numbers)
        if LEARNT:
            if not REVERSE:
                terms += load_rows(flow, at, at < n, d, D)
            store_rows(flow, at, at < n, d, D, terms)
        rows_z *= left_at_writes(logs, later, CHANNEL, REVERSE)
        written = mm(tl.trans(rows_z.to(LOW)), rows_y, LOW, PRECISION)
        state = faded(state, log_of_chunk(logs, later, CHANNEL), CHANNEL) + written
