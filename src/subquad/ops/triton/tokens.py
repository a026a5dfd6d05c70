"""Tokens of strided tensors, in a tuple with their strides.

A kernel is given tokens of shape (b h t _) as a tuple: where they are, and the strides of batch, head and
token (`launch.tokens`). `head_of` makes a head's tokens of it, again a tuple, which the other functions take.
Tiles are read with zeros where there is no token, and written where there is one.
"""

import triton.language as tl

from subquad.ops.triton.launch import inlined


@inlined
def head_of(x, bh, heads):
    """Where a head's tokens are, and their stride."""
    return x[0] + (bh // heads) * x[1] + (bh % heads) * x[2], x[3]


@inlined
def load_rows(x, at, seen, c, width):
    """The columns `c` of the tokens `at` that are `seen`, as they are stored."""
    mask = seen[:, None] & (c < width)[None, :]
    return tl.load(x[0] + at[:, None].to(tl.int64) * x[1] + c[None, :], mask=mask, other=0.0)


@inlined
def store_rows(x, at, seen, c, width, value):
    mask = seen[:, None] & (c < width)[None, :]
    tl.store(x[0] + at[:, None].to(tl.int64) * x[1] + c[None, :], value.to(x[0].dtype.element_ty), mask=mask)


@inlined
def token_mask(valid, bh, heads, at, n, MASK: tl.constexpr):
    """Which of the n tokens of a sequence are at `at`; `valid`: a byte for each, if there is padding."""
    if MASK:
        return tl.load(valid + (bh // heads) * n + at, mask=at < n, other=0) != 0
    else:
        return at < n


@inlined
def finite_where_padding(x, seen):
    """Rows with zeros for what is not finite at padding; what is not finite elsewhere stays.

    `seen` says of each row, or of the only one by a number, whether it is a token.
    """
    finite = tl.abs(x.to(tl.float32)) < float("inf")
    if len(x.shape) == 2:
        return tl.where((seen == 0)[:, None] & (finite == 0), tl.zeros_like(x), x)
    else:
        return tl.where(finite | (tl.zeros_like(x) + seen != 0), x, tl.zeros_like(x))
