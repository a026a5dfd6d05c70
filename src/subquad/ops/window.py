"""Softmax attention within a sliding window, in time and memory of the window.

    out_i = sum_j exp(s_ij - lse_i) v_j,    s_ij = q_i . k_j / sqrt(d),    i - left <= j <= i + right
    lse_i = log sum_j exp(s_ij)

A block of queries stands beside the slice of keys that any of them sees. Nothing is kept for the backward
pass but the outputs and lse, from which it makes the weights again. Outputs over other keys of the same
queries merge by lse, which therefore has a gradient of its own.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.native import window as native
from subquad.ops.native.library import usable
from subquad.ops.shapes import require_shape, require_together

Keyed = Float[Tensor, "b h t d"]
Values = Float[Tensor, "b h t e"]
Rows = Float[Tensor, "b h t"]
Lengths = Int[Tensor, " b"] | None

BLOCK = 64  # queries that are taken at once
INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? lengths, int left, int right"
# a private operator of PyTorch: attention on the CPU that also gives lse
FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def window_attention(
    q: Keyed, k: Keyed, v: Values, *, left: int, right: int, lengths: Lengths
) -> tuple[Values, Rows]:
    """Outputs and lse; `left` and `right` are the keys on either side, `lengths` the tokens of each row.

    Queries behind their row's length see nothing: zeros, and an lse of -inf. Raises `ValueError` for inputs
    whose shapes do not fit one another.
    """
    require_rows(q, k, v, lengths)
    if q.shape[2] == 0:
        return v, q.sum(-1)
    last = q.shape[2] - 1
    return torch.ops.subquad.window(q, k, v, lengths, min(left, last), min(right, last))


def require_rows(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> None:
    """Raise `ValueError` unless there is a key and a value for each query, and a length for each row."""
    require_together(q, k, v)
    require_shape("keys", k, *q.shape)
    if lengths is not None:
        require_shape("lengths", lengths, len(q))


@torch.library.custom_op("subquad::window", mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor)")
def forward(q: Keyed, k: Keyed, v: Values, lengths: Lengths, left: int, right: int) -> tuple[Values, Rows]:
    if usable(q, k, v):
        return native.forward(q, k, v, lengths, left=left, right=right)
    out, lse = v.new_empty(v.shape), v.new_empty(v.shape[:3])
    fused = lengths is None and q.is_cpu and q.shape[3] == v.shape[3]
    for rows, keys, bias in blocks(q, lengths, left=left, right=right):
        queries = q[:, :, rows]
        if FLASH is not None and fused:
            found = FLASH(queries, k[:, :, keys], v[:, :, keys], attn_mask=bias)
        else:
            found = softmax(queries, k[:, :, keys], v[:, :, keys], bias)
        out[:, :, rows], lse[:, :, rows] = found
    return out, lse


@torch.library.custom_op(
    "subquad::window_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor grad_lse, Tensor out, Tensor lse, {INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def backward(
    grad: Values,
    grad_lse: Rows,
    out: Values,
    lse: Rows,
    q: Keyed,
    k: Keyed,
    v: Values,
    lengths: Lengths,
    left: int,
    right: int,
) -> tuple[Keyed, Keyed, Values]:
    if usable(q, k, v, grad):
        return native.backward(grad, grad_lse, q, k, v, lengths, out, lse, left=left, right=right)
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = (grad * out).sum(-1) - grad_lse
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # behind the length: no weights
    scale = q.shape[3] ** -0.5
    for rows, keys, bias in blocks(q, lengths, left=left, right=right):
        own, near, value, g = q[:, :, rows], k[:, :, keys], v[:, :, keys], grad[:, :, rows]
        weights = torch.baddbmm(*flat(bias, own, near), alpha=scale).unflatten(0, q.shape[:2])
        weights.sub_(lse[:, :, rows, None]).exp_()
        change = (g @ value.mT).sub_(delta[:, :, rows, None]).mul_(weights).mul_(scale)
        dv[:, :, keys] += weights.mT @ g
        dq[:, :, rows] = change @ near
        dk[:, :, keys] += change.mT @ own
    return dq, dk, dv


class Block(NamedTuple):
    rows: slice
    keys: slice
    bias: Float[Tensor, "#b 1 r c"]  # -inf where a row does not see a key


def blocks(q: Keyed, lengths: Lengths, *, left: int, right: int) -> Iterator[Block]:
    """Queries in order, beside the keys that any of them sees."""
    length = q.shape[2]
    i = torch.arange(BLOCK, device=q.device)[:, None]
    d = i - torch.arange(-left, BLOCK + right, device=q.device)
    hidden = ((d > left) | (d < -right))[None, None]
    band = q.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        rows, keys = slice(start, stop), slice(max(0, start - left), min(length, stop + right))
        bias = band[:, :, : stop - start, keys.start - start + left : keys.stop - start + left]
        if lengths is not None:
            behind = torch.arange(keys.start, keys.stop, device=q.device) >= lengths[:, None]
            absent = torch.arange(start, stop, device=q.device) >= lengths[:, None]
            bias = bias.masked_fill((behind[:, None] | absent[..., None])[:, None], -torch.inf)
        yield Block(rows, keys, bias)


def softmax(
    q: Float[Tensor, "b h r d"],
    k: Float[Tensor, "b h c d"],
    v: Float[Tensor, "b h c e"],
    bias: Float[Tensor, "#b 1 r c"],
) -> tuple[Float[Tensor, "b h r e"], Float[Tensor, "b h r"]]:
    """Outputs and lse over a slice of keys."""
    weights = torch.baddbmm(*flat(bias, q, k), alpha=q.shape[3] ** -0.5).unflatten(0, q.shape[:2])
    top = weights.amax(-1, keepdim=True).clamp_(min=torch.finfo(q.dtype).min)
    total = weights.sub_(top).exp_().sum(-1, keepdim=True)
    out = (weights @ v).div_(total.masked_fill(total == 0, 1))
    return out, (top + total.log())[..., 0]


def flat(bias: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Batch and heads as one, for a product with a sum."""
    return bias.expand(*q.shape[:2], -1, -1).flatten(0, 1), q.flatten(0, 1), k.mT.flatten(0, 1)


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape[:3])


@backward.register_fake
def _(
    grad: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.left, ctx.right = inputs
    ctx.save_for_backward(*output, *tensors)


def gradients(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.subquad.window_backward(grad, grad_lse, *ctx.saved_tensors, ctx.left, ctx.right)
    return *found, None, None, None


forward.register_autograd(gradients, setup_context=remember)
