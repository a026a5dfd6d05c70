"""A matrix that fades, a block of chunks a program, all blocks side by side.

    write    the state that each block makes of nothing, and what it leaves of the one before it
    scan     the state before each block, and the last one
    recall   the outputs of each block, chunk by chunk, from the state before it

The gradients are the same by exchange of roles. Where time runs backwards, a state is the gradient of one:

    outputs    recall  x = q     y = k     z = v        of S
    dv         recall  x = k     y = q     z = grad     of R = dS    backwards
    dq         recall  x = grad  y = v     z = k        of S^T
    dk         recall  x = v     y = grad  z = q        of R^T       backwards

the last two where a token has one decay; decays by channel take `triton_channel_kernels.py`.
"""

import triton.language as tl

from subquad.ops.recurrence.triton_fading import (
    faded,
    fading_of,
    left_at_reads,
    left_at_writes,
    load_fading,
    log_of_chunk,
    weights,
)
from subquad.ops.triton.launch import kernel
from subquad.ops.triton.products import mm
from subquad.ops.triton.tokens import head_of, load_rows, store_rows


@kernel
def write(
    x, y, decays, states, left, n, heads, chunks,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, C: tl.constexpr,
    KIND: tl.constexpr, REVERSE: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of keys x and values y; REVERSE, of queries x and gradients y."""
    block, bh, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    x, y, decays = head_of(x, bh, heads), head_of(y, bh, heads), fading_of(decays, bh, heads)
    d, e, r = tl.arange(0, BD), part * BE + tl.arange(0, BE), tl.arange(0, C)
    state = tl.zeros((BD, BE), tl.float32)
    total = tl.zeros((BD,), tl.float32)
    for i in range(chunks):
        first = (block * chunks + (chunks - 1 - i if REVERSE else i)) * C
        at = first + r
        logs, later = load_fading(decays, first, n, d, D, C, KIND)
        keys = load_rows(x, at, at < n, d, D) * left_at_writes(logs, later, KIND, REVERSE)
        values = load_rows(y, at, at < n, e, E)
        log = log_of_chunk(logs, later, KIND)
        state = faded(state, log, KIND) + mm(tl.trans(keys.to(LOW)), values, LOW, PRECISION)
        total += log
    place = bh * tl.num_programs(0) + block
    here = (d < D)[:, None] & (e < E)[None, :]
    tl.store(states + place * D * E + d[:, None] * E + e[None, :], state, mask=here)
    if part == 0:
        tl.store(left + place * D + d, total, mask=d < D)


@kernel
def scan(
    states, left, before, last, blocks,
    D: tl.constexpr, E: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What blocks wrote becomes the state before each, in place; REVERSE, the one after each."""
    at, bh = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    here = at < D * E
    state = tl.load(before + bh * D * E + at, mask=here, other=0.0)
    for i in range(blocks):
        block = bh * blocks + (blocks - 1 - i if REVERSE else i)
        place = states + block * D * E + at
        written = tl.load(place, mask=here, other=0.0)
        log = tl.load(left + block * D + at // E, mask=here, other=0.0)
        tl.store(place, state, mask=here)
        state = state * tl.exp(log) + written
    tl.store(last + bh * D * E + at, state, mask=here)


@kernel
def recall(
    x, y, z, decays, states, out, n, heads, chunks,
    X: tl.constexpr, Z: tl.constexpr, BX: tl.constexpr, BZ: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, KIND: tl.constexpr, REVERSE: tl.constexpr, LOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What rows x read of y and z in their chunk, and of the state before it.

    `states` come with the strides of rows and columns, which may turn them.
    """
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x, y, z = head_of(x, bh, heads), head_of(y, bh, heads), head_of(z, bh, heads)
    decays, out = fading_of(decays, bh, heads), head_of(out, bh, heads)
    c, e, r = tl.arange(0, BX), tl.program_id(2) * BZ + tl.arange(0, BZ), tl.arange(0, C)
    place = states[0] + (bh * tl.num_programs(0) + block) * X * Z
    here = (c < X)[:, None] & (e < Z)[None, :]
    of_state = place + c[:, None] * states[1] + e[None, :] * states[2]
    state = tl.load(of_state, mask=here, other=0.0).to(tl.float32)
    for i in range(chunks):
        first = (block * chunks + (chunks - 1 - i if REVERSE else i)) * C
        at = first + r
        logs, later = load_fading(decays, first, n, c, X, C, KIND)
        queries = load_rows(x, at, at < n, c, X)
        keys = load_rows(y, at, at < n, c, X)
        values = load_rows(z, at, at < n, e, Z)
        of_chunk = weights(queries, keys, logs, later, C, LEVELS, KIND, REVERSE, LOW, PRECISION)
        numbers = mm(of_chunk, values, LOW, PRECISION)
        numbers += mm(queries * left_at_reads(logs, later, KIND, REVERSE), state, LOW, PRECISION)
        store_rows(out, at, at < n, e, Z, numbers)
        keys = (keys * left_at_writes(logs, later, KIND, REVERSE)).to(LOW)
        state = faded(state, log_of_chunk(logs, later, KIND), KIND) + mm(
            tl.trans(keys), values, LOW, PRECISION
        )
