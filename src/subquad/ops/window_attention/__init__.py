"""Softmax attention within a sliding window, in time and memory of the window.

    out_i = sum_j exp(s_ij - lse_i) v_j,    s_ij = q_i . k_j / sqrt(d),    i - left <= j <= i + right
    lse_i = log sum_j exp(s_ij)

Only the outputs and lse are kept for the backward pass, which makes the weights from them again. Outputs over
other keys of the same queries merge by lse, which therefore has a gradient of its own.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.backends import Backends
from subquad.ops.shared.operator import call_op, differentiable_once
from subquad.ops.shared.precision import widened
from subquad.ops.shared.shapes import require_matching_inputs, require_places, require_shape

Queries = Float[Tensor, "b h t d"]
Values = Float[Tensor, "b h t e"]
Lse = Float[Tensor, "b h t"]


class WindowCall(NamedTuple):
    """Inputs that fit one another, as `window_attention` says; a window is never longer than the sequence."""

    q: Queries
    k: Queries
    v: Values
    lengths: Int[Tensor, " b"] | None
    left: int
    right: int


class WindowResult(NamedTuple):
    out: Values
    lse: Lse


BACKENDS = Backends[WindowCall](__name__, "cpu", "parallel", "reference")


def window_attention(
    q: Queries, k: Queries, v: Values, *, left: int, right: int, lengths: Int[Tensor, " b"] | None = None
) -> tuple[Values, Lse]:
    """Attention of each token to the `left` keys before it, itself, and the `right` keys behind it.

    q, k     (batch, heads, tokens, d), v (batch, heads, tokens, e): one floating dtype
    lengths  int64 (batch): the tokens of each row, with padding behind them. None: all are tokens

    Returns outputs like `v`, and lse (batch, heads, tokens) in float32 at least. Queries in padding see
    nothing: zeros, and an lse of -inf. Raises `ValueError` for inputs whose shapes or dtypes do not fit one
    another.
    """
    require_tokens(q, k, v, lengths)
    if q.shape[2] == 0:
        return v, q.sum(-1, dtype=widened(q.dtype))
    return call_op(window_op, q, k, v, lengths, left, right)[:2]


def require_tokens(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> None:
    """Raise `ValueError` unless there is a key and a value for each query, and a length for each row."""
    require_matching_inputs(q, k, v)
    require_shape("keys", k, *q.shape)
    if lengths is not None:
        require_places("lengths", lengths, q.shape[0])


def window_call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, left: int, right: int) -> WindowCall:
    return WindowCall(q, k, v, lengths, *(min(x, q.shape[2] - 1) for x in (left, right)))


WINDOW_SCHEMA = "Tensor q, Tensor k, Tensor v, Tensor? lengths, int left, int right"


@torch.library.custom_op(
    "subquad::window",
    mutates_args=(),
    schema=f"({WINDOW_SCHEMA}) -> (Tensor out, Tensor lse, Tensor backend)",
)
def window_op(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    backend, result = BACKENDS.run("forward", window_call(*inputs))
    return result.out, result.lse, torch.tensor(backend)


@torch.library.custom_op(
    "subquad::window_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor grad_lse, Tensor out, Tensor lse, Tensor backend, {WINDOW_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor)",
)
def window_backward_op(
    grad: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, backend: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[backend].backward(
        WindowResult(grad, grad_lse), window_call(*inputs), WindowResult(out, lse)
    )


@window_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    lse = v.new_empty(v.shape[:3], dtype=widened(v.dtype))
    return v.new_empty(v.shape), lse, torch.empty((), dtype=torch.int64)


@window_backward_op.register_fake
def _(
    grad: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, backend: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, *_ = inputs
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def save_window(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.left, ctx.right = inputs
    ctx.save_for_backward(*output, *tensors)


def window_gradients(ctx: Any, grad: Tensor, grad_lse: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = call_op(window_backward_op, grad, grad_lse, *ctx.saved_tensors, ctx.left, ctx.right)
    return *gradients, None, None, None


window_op.register_autograd(window_gradients, setup_context=save_window)
differentiable_once(window_backward_op)
