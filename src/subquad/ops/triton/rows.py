"""Tokens of strided tensors: tiles are read with zeros where there is none, and written where there is one.

Strides are those of batch, head and token; numbers of one token lie side by side.
"""

import triton.language as tl

from subquad.ops.triton.launch import inlined


@inlined
def head_of(x, strides, bh, heads):
    """The first token of a head."""
    return x + (bh // heads) * strides[0] + (bh % heads) * strides[1]


@inlined
def token_mask(valid, bh, heads, stride, at, n, MASK: tl.constexpr):
    """Which of the tokens `at` there are."""
    if MASK:
        return tl.load(valid + (bh // heads) * stride + at, mask=at < n, other=0) != 0
    else:
        return at < n


@inlined
def load_rows(x, strides, at, seen, c, width):
    """The columns `c` of the tokens `at` that are `seen`, as they are stored."""
    mask = seen[:, None] & (c < width)[None, :]
    return tl.load(x + at[:, None].to(tl.int64) * strides[2] + c[None, :], mask=mask, other=0.0)


@inlined
def store_rows(x, strides, at, n, c, width, value):
    mask = (at < n)[:, None] & (c < width)[None, :]
    p = x + at[:, None].to(tl.int64) * strides[2] + c[None, :]
    tl.store(p, value.to(x.dtype.element_ty), mask=mask)


@inlined
def finite_where_padding(x, seen):
    """Rows with zeros for what is not finite at padding; what is not finite elsewhere stays."""
    lost = (seen == 0)[:, None] & ((tl.abs(x.to(tl.float32)) < float("inf")) == 0)
    return tl.where(lost, tl.zeros_like(x), x)
