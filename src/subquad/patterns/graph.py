"""A pattern's attention as one operator, for the graphs of `torch.compile` and `torch.export`.

Tiles, and how many there are, depend on the length, and a graph that laid them out would be for one length.
Here the operator's body lays them out. It is told the pattern as it is written, so that a graph can be saved.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops import tiles, window
from subquad.ops.operator import call_op, differentiable_once
from subquad.ops.precision import wide, widened
from subquad.patterns.grammar import read_again
from subquad.patterns.layout import layout
from subquad.torch_internals import op_body

INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? n, str pattern"


def pattern_attention(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    *,
    n: Int[Tensor, " b"] | None,
    pattern: str,
) -> Float[Tensor, "b h s e"]:
    """`patterns.attend` by the pattern that is written so."""
    window.require_rows(q, k, v, n)
    return call_op(forward, q, k, v, n, pattern)[0]


@torch.library.custom_op("subquad::pattern", mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor)")
def forward(q: Tensor, k: Tensor, v: Tensor, n: Tensor | None, pattern: str) -> tuple[Tensor, Tensor]:
    band, tilings = layout(read_again(pattern), q.shape[2], n, q.device)
    if band is not None and not tilings:
        return window.attended(q, k, v, n, *band)
    out, lse = op_body(tiles.forward)(*wide(q, k, v), *tiles.apart(tilings), n, *(band or (None, None)))
    return out.to(v.dtype), lse


@torch.library.custom_op(
    "subquad::pattern_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor lse, {INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def backward(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, n: Tensor | None, pattern: str
) -> tuple[Tensor, Tensor, Tensor]:
    band, tilings = layout(read_again(pattern), q.shape[2], n, q.device)
    if band is not None and not tilings:
        return window.pulled_back(grad, torch.zeros_like(lse), out, lse, q, k, v, n, *band)
    grad, out, wide_q, wide_k, wide_v = wide(grad, out, q, k, v)
    found = op_body(tiles.backward)(
        grad, out, lse, wide_q, wide_k, wide_v, *tiles.apart(tilings), n, *(band or (None, None))
    )
    dq, dk, dv = (x.to(v.dtype) for x in found)
    return dq, dk, dv


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape[:3], dtype=widened(v.dtype))


@backward.register_fake
def _(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.pattern = inputs
    ctx.save_for_backward(*output, *tensors)


def gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *call_op(backward, grad, *ctx.saved_tensors, ctx.pattern), None, None


forward.register_autograd(gradients, setup_context=remember)
differentiable_once(backward)
