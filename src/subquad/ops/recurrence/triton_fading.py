"""What the kernels of the recurrences share: what decays leave of tokens within a chunk, and of a state.

What is left between two tokens is the exponential of a sum of logarithms, each of them once: no difference of
running sums and no quotient, so that a decay of e^-200, or of zero, costs the others nothing.

`decays` come as one of three kinds:

    "uniform"    one for all tokens of a head: counts of tokens times its logarithm
    "head"       one a token
    "channel"    one for each channel of a token's key
"""

# branches are on constants, and Triton's tensors have no types:
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false

import triton.language as tl

from subquad.ops.triton.launch import inlined
from subquad.ops.triton.products import INTERPRETED, mm


@inlined
def fading_of(x, bh, heads):
    """Where a head's logarithms are, and their strides of token and channel; `x` has those of all axes."""
    return x[0] + (bh // heads) * x[1] + (bh % heads) * x[2], x[3], x[4]


@inlined
def load_logs(decays, at, seen, c, width, KIND: tl.constexpr):
    """(c) or, by channel, (c, d); nothing fades where there is no token."""
    place = decays[0] + at.to(tl.int64) * decays[1]
    if KIND == "channel":
        here = seen[:, None] & (c < width)[None, :]
        logs = tl.load(place[:, None] + c[None, :] * decays[2], mask=here, other=0.0)
    else:
        logs = tl.load(place, mask=seen, other=0.0)
    return logs.to(tl.float32)


@inlined
def times(count, log):
    """The logarithm of a decay that occurs so often; of zero, too."""
    return tl.where(count == 0, 0.0, count.to(tl.float32) * log)


@inlined
def load_fading(decays, first, n, c, width, C: tl.constexpr, KIND: tl.constexpr):
    """The logarithms of a chunk's tokens, and those of the tokens after each of them.

    Of uniform decays: the count of decays from the chunk's start to each token, and the one logarithm.
    """
    r = tl.arange(0, C)
    if KIND == "uniform":
        return tl.maximum(tl.minimum(r + 1, n - first), 0), tl.load(decays[0]).to(tl.float32)
    else:
        logs = load_logs(decays, first + r, first + r < n, c, width, KIND)
        follows = (first + r + 1 < n) & (r < C - 1)
        return logs, load_logs(decays, first + r + 1, follows, c, width, KIND)


@inlined
def since_start(logs, later, KIND: tl.constexpr):
    """What is left at each token of what the chunk met: (c, 1) or (c, d)."""
    if KIND == "uniform":
        return tl.exp(times(logs, later))[:, None]
    elif KIND == "head":
        return tl.exp(tl.cumsum(logs, 0))[:, None]
    else:
        return tl.exp(tl.cumsum(logs, 0))


@inlined
def until_end(logs, later, KIND: tl.constexpr):
    """What is left at the chunk's end of what each token wrote."""
    if KIND == "uniform":
        return tl.exp(times(tl.max(logs, 0) - logs, later))[:, None]
    elif KIND == "head":
        return tl.exp(tl.cumsum(later, 0, reverse=True))[:, None]
    else:
        return tl.exp(tl.cumsum(later, 0, reverse=True))


@inlined
def left_at_reads(logs, later, KIND: tl.constexpr, REVERSE: tl.constexpr):
    """Of a state, at each token that reads it; REVERSE, where time runs backwards, of its gradient."""
    if REVERSE:
        return until_end(logs, later, KIND)
    else:
        return since_start(logs, later, KIND)


@inlined
def left_at_writes(logs, later, KIND: tl.constexpr, REVERSE: tl.constexpr):
    """Of what each token writes, in the state that the chunk leaves."""
    return left_at_reads(logs, later, KIND, not REVERSE)


@inlined
def log_of_chunk(logs, later, KIND: tl.constexpr):
    """The logarithm of what is left at the chunk's end of what it met: one number, or (d)."""
    if KIND == "uniform":
        return times(tl.max(logs, 0), later)
    else:
        return tl.sum(logs, 0)


@inlined
def faded(state, log, KIND: tl.constexpr):
    if KIND == "channel":
        return state * tl.exp(log)[:, None]
    else:
        return state * tl.exp(log)


@inlined
def between(logs, later, C: tl.constexpr, KIND: tl.constexpr, TURNED: tl.constexpr):
    """What is left at token i of what token j <= i wrote, otherwise 0: [i, j], or TURNED [j, i]."""
    r = tl.arange(0, C)
    if TURNED:
        order = r[None, :] >= r[:, None]
        if KIND == "uniform":
            sums = times(tl.maximum(logs[None, :] - logs[:, None], 0), later)
        else:
            sums = tl.cumsum(tl.where(r[None, :] > r[:, None], logs[None, :], 0.0), 1)
    else:
        order = r[:, None] >= r[None, :]
        if KIND == "uniform":
            sums = times(tl.maximum(logs[:, None] - logs[None, :], 0), later)
        else:
            sums = tl.cumsum(tl.where(r[:, None] > r[None, :], logs[:, None], 0.0), 0)
    return tl.where(order, tl.exp(sums), 0.0)


@inlined
def add_unless_edge(x, edge, y, edge_of_y):
    return tl.where(edge_of_y != 0, y, x + y), edge | edge_of_y


@inlined
def sums_in_parts(x, level, C: tl.constexpr, REVERSE: tl.constexpr):
    """Running sums within each 2^level rows."""
    r = tl.arange(0, C)
    if INTERPRETED:  # the same sums, 50 times sooner there than by a scan of pairs
        same = (r[:, None] >> level) == (r[None, :] >> level)
        order = (r[None, :] >= r[:, None]) if REVERSE else (r[None, :] <= r[:, None])
        return tl.sum(tl.where((same & order)[:, :, None], x[None, :, :], 0.0), 1)
    else:
        size = 1 << level
        edge = ((r & (size - 1)) == (size - 1 if REVERSE else 0)).to(tl.int32)
        edges = tl.broadcast_to(edge[:, None], x.shape)
        sums, _ = tl.associative_scan((x, edges), 0, add_unless_edge, reverse=REVERSE)
        return sums


@inlined
def in_parts(logs, later, level, C: tl.constexpr):
    """What is left at each token since the start of its 2^level tokens, and of each until their end."""
    size = 1 << level
    inside = ((tl.arange(0, C) & (size - 1)) != size - 1)[:, None]
    start = tl.exp(sums_in_parts(logs, level, C, False))
    return start, tl.exp(sums_in_parts(tl.where(inside, later, 0.0), level, C, True))


@inlined
def corners(level, C: tl.constexpr, TURNED: tl.constexpr):
    """Queries of every second 2^level tokens, and keys of the 2^level tokens before them."""
    part = tl.arange(0, C) >> level
    if TURNED:
        return ((part & 1) == 0)[:, None] & (part[:, None] + 1 == part[None, :])
    else:
        return ((part & 1) == 1)[:, None] & (part[:, None] == part[None, :] + 1)


@inlined
def weights(
    x, y, logs, later,
    C: tl.constexpr, LEVELS: tl.constexpr, KIND: tl.constexpr, TURNED: tl.constexpr, LOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The sum over channels of x_i, y_j and what is left between them, j <= i: [i, j].

    TURNED, x are keys and y queries: [j, i], by products of its own. A transpose of a product must not be the
    first factor of another, which Triton 3.4 to 3.7.0 compile wrongly on Hopper.
    """
    if KIND == "channel":
        r = tl.arange(0, C)
        sums = tl.where(
            r[:, None] == r[None, :], tl.sum(x.to(tl.float32) * y.to(tl.float32), 1)[:, None], 0.0
        )
        for level in range(LEVELS):  # unrolled, all levels would be in registers
            start, end = in_parts(logs, later, level, C)
            if TURNED:
                part = mm(x * end, tl.trans(y * start), LOW, PRECISION)
            else:
                part = mm(x * start, tl.trans(y * end), LOW, PRECISION)
            sums += tl.where(corners(level, C, TURNED), part, 0.0)
        return sums
    else:
        return mm(x, tl.trans(y), LOW, PRECISION) * between(logs, later, C, KIND, TURNED)
