"""Softmax attention within a sliding window, in time and memory of the window.

    out_i = sum_j exp(s_ij - lse_i) v_j,    s_ij = q_i . k_j / sqrt(d),    i - left <= j <= i + right
    lse_i = log sum_j exp(s_ij)

A block of queries stands beside the slice of keys that any of them sees; in the backward pass a block of keys
beside the queries that see any of them, so that only the queries' gradients add up. Nothing is kept for it
but the outputs and lse, from which it makes the weights again. Outputs over other keys of the same queries
merge by lse, which therefore has a gradient of its own.

Weights are exp(s_ij) and their sum is divided by afterwards: the greatest score, which softmax has to find
first, is only needed where sums leave the range of float32. lse tells, and such rows are done again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.allocation import empty_result
from subquad.ops.native import window as native
from subquad.ops.native.library import readable
from subquad.ops.operator import call_op, differentiable_once
from subquad.ops.precision import widened
from subquad.ops.shapes import require_places, require_shape, require_together

Keyed = Float[Tensor, "b h t d"]
Values = Float[Tensor, "b h t e"]
Rows = Float[Tensor, "b h t"]
Lengths = Int[Tensor, " b"] | None

BLOCK, HEADS = 64, 8  # queries, and heads, that are taken at once
WHOLE = 16  # keys, from a multiple of which on rows of scores mostly begin where cache lines do
RANGE = 60.0  # of an lse whose sum of exponentials has lost nothing
INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? lengths, int left, int right"


def window_attention(
    q: Keyed, k: Keyed, v: Values, *, left: int, right: int, lengths: Lengths
) -> tuple[Values, Rows]:
    """Outputs, and lse in float32 at least.

    `left` and `right` are the keys on either side, `lengths` the tokens of each row. Queries behind it see
    nothing: zeros, and an lse of -inf. Raises `ValueError` for inputs whose shapes or dtypes do not
    fit one another.
    """
    require_rows(q, k, v, lengths)
    if q.shape[2] == 0:
        return v, q.sum(-1, dtype=widened(q.dtype))
    return call_op(forward, q, k, v, lengths, left, right)


def require_rows(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> None:
    """Raise `ValueError` unless there is a key and a value for each query, and a length for each row."""
    require_together(q, k, v)
    require_shape("keys", k, *q.shape)
    if lengths is not None:
        require_places("lengths", lengths, q.shape[0])


def attended(q: Keyed, k: Keyed, v: Values, lengths: Lengths, left: int, right: int) -> tuple[Values, Rows]:
    left, right = (min(x, q.shape[2] - 1) for x in (left, right))
    if readable(q, k, v):
        return native.forward(q, k, v, lengths, left=left, right=right)
    if (wide := widened(q.dtype)) != q.dtype:
        out, lse = empty_result(v), v.new_empty(v.shape[:3], dtype=wide)
        for own in some_heads(q):
            given = (x[:, own].to(wide) for x in (q, k, v))
            out[:, own], lse[:, own] = attended(*given, lengths=lengths, left=left, right=right)
        return out, lse
    out, lse = empty_result(v), v.new_empty(v.shape[:3])
    if lengths is not None:
        out.zero_()
        lse.fill_(-torch.inf)
    for q_, k_, v_, out_, lse_ in sequences(lengths, q, k, v, out, lse):
        cuts = list(blocks(q_.shape[1], left=left, right=right, whole=WHOLE))
        for at, near in cuts:
            weights = torch.bmm(q_[:, at] * q.shape[3] ** -0.5, k_[:, near].mT).exp_()
            hide_(weights, at, near, left=left, right=right)
            total = weights.sum(-1, keepdim=True)
            torch.div(torch.bmm(weights, v_[:, near]), total, out=out_[:, at])
            torch.log(total[..., 0], out=lse_[:, at])
        far = ~(lse_.abs() <= RANGE)
        for at, near in cuts if far.any() else ():
            if far[:, at].any():
                scores = torch.bmm(q_[:, at] * q.shape[3] ** -0.5, k_[:, near].mT)
                seen = hide_(torch.ones_like(scores), at, near, left=left, right=right)
                scores.masked_fill_(seen == 0, -torch.inf)
                lost = far[:, at]  # and no other row, whose rounding would hang on its neighbours
                lse_[:, at] = torch.where(lost, scores.logsumexp(-1), lse_[:, at])
                found = torch.bmm(scores.softmax(-1), v_[:, near])
                out_[:, at] = torch.where(lost[..., None], found, out_[:, at])
    return out, lse


def pulled_back(
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
    left, right = (min(x, q.shape[2] - 1) for x in (left, right))
    if readable(q, k, v, grad, out):
        return native.backward(grad, grad_lse, q, k, v, lengths, out, lse, left=left, right=right)
    if (wide := widened(q.dtype)) != q.dtype:
        dq, dk, dv = (empty_result(x) for x in (q, k, v))
        for own in some_heads(q):
            given = (x[:, own].to(wide) for x in (grad, grad_lse, out, lse, q, k, v))
            dq[:, own], dk[:, own], dv[:, own] = pulled_back(*given, lengths=lengths, left=left, right=right)
        return dq, dk, dv
    dq, dk, dv = (empty_result(x) for x in (q, k, v))
    for written in (dq,) if lengths is None else (dq, dk, dv):
        written.zero_()
    lse, delta = lse[..., None], (torch.einsum("bhtd,bhtd->bht", grad, out) - grad_lse)[..., None]
    scale = q.shape[3] ** -0.5
    parts = sequences(lengths, q, k, v, grad, lse, delta, dq, dk, dv)
    for q_, k_, v_, grad_, lse_, delta_, dq_, dk_, dv_ in parts:
        for at, near in blocks(k_.shape[1], left=right, right=left):
            own = k_[:, at] * scale
            weights = torch.bmm(q_[:, near], own.mT).sub_(lse_[:, near]).exp_()
            hide_(weights, near, at, left=left, right=right)
            change = torch.bmm(grad_[:, near], v_[:, at].mT).sub_(delta_[:, near]).mul_(weights)
            torch.baddbmm(dq_[:, near], change, own, out=dq_[:, near])
            dk_[:, at] = torch.bmm(change.mT, q_[:, near]).mul_(scale)
            dv_[:, at] = torch.bmm(weights.mT, grad_[:, near])
    return dq, dk, dv


def hide_(weights: Tensor, queries: slice, keys: slice, *, left: int, right: int) -> Tensor:
    """Zeros in the place of weights outside the window: only the corners are looked at."""
    _, rows, columns = weights.shape
    own = queries.start - keys.start
    first, last = own - left, own + right  # the keys of the first row
    above, before = max(0, 1 - first), max(0, first + rows - 1)
    weights[:, above:, :before].triu_(first + above)
    below, behind = max(0, columns - last - 1), max(0, last + 1)
    weights[:, :below, behind:].tril_(last - behind)
    return weights


def some_heads(q: Keyed) -> Iterator[slice]:
    """A few heads at a time, whose copies in another precision take memory that is in cache already."""
    step = HEADS // 2 if q.is_cpu else q.shape[1]
    return (slice(start, start + step) for start in range(0, q.shape[1], step))


def sequences(lengths: Lengths, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few heads of sequences of one length, without the padding behind it: as many as fit in cache."""
    if lengths is None:
        yield from zip(*(x.flatten(0, 1).split(HEADS) for x in tensors), strict=True)
        return
    for row, length in enumerate(lengths.tolist()):
        yield from zip(*(x[row, :, :length].split(HEADS) for x in tensors), strict=True)


def blocks(length: int, *, left: int, right: int, whole: int = 1) -> Iterator[tuple[slice, slice]]:
    """Tokens in order, and all that lie `left` and `right` of any of them: from a multiple of `whole`."""
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        yield slice(start, stop), slice(max(0, (start - left) // whole * whole), min(length, stop + right))


forward = torch.library.custom_op(
    "subquad::window", attended, mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor)"
)
backward = torch.library.custom_op(
    "subquad::window_backward",
    pulled_back,
    mutates_args=(),
    schema=f"(Tensor grad, Tensor grad_lse, Tensor out, Tensor lse, {INPUTS}) -> (Tensor, Tensor, Tensor)",
)


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape[:3], dtype=widened(v.dtype))


@backward.register_fake
def _(
    grad: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.left, ctx.right = inputs
    ctx.save_for_backward(*output, *tensors)


def gradients(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    found = call_op(backward, grad, grad_lse, *ctx.saved_tensors, ctx.left, ctx.right)
    return *found, None, None, None


forward.register_autograd(gradients, setup_context=remember)
differentiable_once(backward)
