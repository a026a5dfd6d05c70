"""Tokens of strided tensors: tiles are read with zeros where there is none, and written where there is one.

Strides are those of batch, head and token; numbers of one token lie side by side.
"""

import triton
import triton.language as tl


@triton.jit
def head_of(x, strides, bh, heads):
    """The first token of a head."""
    return x + (bh // heads).to(tl.int64) * strides[0] + (bh % heads).to(tl.int64) * strides[1]


@triton.jit
def token_mask(valid, bh, heads, stride, at, n, MASK: tl.constexpr):
    """Which of the tokens `at` there are."""
    if MASK:
        return tl.load(valid + (bh // heads) * stride + at, mask=at < n, other=0) != 0
    else:
        return at < n


@triton.jit
def load_rows(x, strides, at, seen, c, width):
    """The columns `c` of the tokens `at` that are `seen`, as they are stored."""
    mask = seen[:, None] & (c < width)[None, :]
    return tl.load(x + at[:, None].to(tl.int64) * strides[2] + c[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x, strides, at, n, c, width, value):
    mask = (at < n)[:, None] & (c < width)[None, :]
    p = x + at[:, None].to(tl.int64) * strides[2] + c[None, :]
    tl.store(p, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def finite_where_padding(x, seen):
    """Rows with zeros for what is not finite at padding; what is not finite elsewhere stays."""
    lost = (seen == 0)[:, None] & ((tl.abs(x.to(tl.float32)) < float("inf")) == 0)
    return tl.where(lost, tl.zeros_like(x), x)
