"""One token of a recurrence, with all that is done to its rows, in one kernel: a program for each head."""

# branches are on constants, and Triton's tensors have no types:
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false

import triton.language as tl

from subquad.ops.recurrence.triton_fading import fading_of
from subquad.ops.recurrence.triton_row_kernels import load_wide, log_sigmoid, swish, turned, unit
from subquad.ops.triton.launch import kernel
from subquad.ops.triton.tokens import head_of


@kernel
def recurrent_step(
    q, k, v, decays, beta, turns, scale, gate, before, last, out, q_scale, unit_eps, normaliser,
    norm_eps, heads,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, LOGITS: tl.constexpr, CHANNELS: tl.constexpr, DELTA: tl.constexpr,
    NORMED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """CHANNELS: decays are one for each; DELTA: there are rates. `last` may be `before`."""
    bh = tl.program_id(0).to(tl.int64)
    at, d, e = tl.arange(0, 1), tl.arange(0, BD), tl.arange(0, BE)
    q, k, v = head_of(q, bh, heads), head_of(k, bh, heads), head_of(v, bh, heads)
    if KEYS == "turned":
        turns = head_of(turns, bh, heads)
        query = turned(q, turns, at, 1, d, D, 1) * q_scale
        key = turned(k, turns, at, 1, d, D, 1)
    elif KEYS == "unit":
        query = unit(load_wide(q, at, 1, d, D), unit_eps)
        key = unit(load_wide(k, at, 1, d, D), unit_eps)
    else:
        query = load_wide(q, at, 1, d, D) * q_scale
        key = load_wide(k, at, 1, d, D)
    value = load_wide(v, at, 1, e, E)
    if VALUES:
        value = swish(value)
    query, key, value = tl.sum(query, 0)[:, None], tl.sum(key, 0)[:, None], tl.sum(value, 0)
    decays = fading_of(decays, bh, heads)
    if CHANNELS:
        log = tl.load(decays[0] + d * decays[2], mask=d < D, other=0.0).to(tl.float32)[:, None]
    else:
        log = tl.load(decays[0]).to(tl.float32)
    if LOGITS:
        log = log_sigmoid(log) / normaliser
    place = bh * D * E + d[:, None] * E + e[None, :]
    here = (d < D)[:, None] & (e < E)[None, :]
    state = tl.load(before + place, mask=here, other=0.0) * tl.exp(log)
    if DELTA:
        rate = tl.load(head_of(beta, bh, heads)[0]).to(tl.float32)
        value = rate * (value - tl.sum(key * state, 0))
    state += key * value[None, :]
    tl.store(last + place, state, mask=here)
    row = tl.sum(query * state, 0)
    if NORMED:
        row *= tl.rsqrt(tl.sum(row * row, 0) / E + norm_eps)
        row *= tl.load(scale + e, mask=e < E, other=0.0).to(tl.float32)
    if GATED:
        row *= swish(tl.sum(load_wide(head_of(gate, bh, heads), at, 1, e, E), 0))
    tl.store(out + bh * E + e, row.to(out.dtype.element_ty), mask=e < E)
