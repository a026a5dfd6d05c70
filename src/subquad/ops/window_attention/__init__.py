"""Softmax attention within a sliding window, in time and memory of the window.

    out_i = sum_j exp(s_ij - lse_i) v_j,    s_ij = q_i . k_j / sqrt(d),    i - left <= j <= i + right
    lse_i = log sum_j exp(s_ij)

Only the outputs and lse are kept for the backward pass, which makes the weights from them again. Outputs over
other keys of the same queries merge by lse, which therefore has a gradient of its own.
"""

from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.backends import Backends
from subquad.ops.shared.attention_operator import attention_operator
from subquad.ops.shared.operator import call_op
from subquad.ops.shared.precision import widened
from subquad.ops.shared.shapes import require_matching_inputs, require_places, require_shape
from subquad.ops.shared.unused import unused

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
        return v + unused(q, k), q.sum(-1, dtype=widened(q.dtype))
    return call_op(window_op, q, k, v, lengths, left, right)[:2]


def require_tokens(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> None:
    """Raise `ValueError` unless there is a key and a value for each query, and a length for each row."""
    require_matching_inputs(q, k, v)
    require_shape("keys", k, *q.shape)
    if lengths is not None:
        require_places("lengths", lengths, q.shape[0])


def window_call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, left: int, right: int) -> WindowCall:
    return WindowCall(q, k, v, lengths, *(min(x, q.shape[2] - 1) for x in (left, right)))


def forward(*inputs: Any) -> tuple[int, WindowResult]:
    return BACKENDS.run("forward", window_call(*inputs))


def backward(
    grad: Tensor, grad_lse: Tensor, backend: Tensor, out: Tensor, lse: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grads, result = WindowResult(grad, grad_lse), WindowResult(out, lse)
    return BACKENDS[backend].backward(grads, window_call(*inputs), result)


window_op = attention_operator(
    "window", "Tensor q, Tensor k, Tensor v, Tensor? lengths, int left, int right", forward, backward
)
