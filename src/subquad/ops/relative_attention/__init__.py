"""Attention of segments to what was remembered before them, by content and by distance.

    out_i = sum_j softmax_j(a_ij) v_j,    a_ij = ((q_i + u) . k_j + (q_i + v) . W_R r_(i-j)) / sqrt(d)

The second term looks like a matrix of scores by distance that has to be shifted row by row. It need not be:
by the addition theorems a . r_(i-j) = turn_i(a) . r_j, where turn_i rotates each pair of sine and cosine.

Places i and j count from the beginning of the query's own segment, so that r_j is the same for all segments
and heads. Nothing is kept for the backward pass but the outputs: it makes the weights again.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.backends import Backends
from subquad.ops.shared.operator import call_op, differentiable_once
from subquad.ops.shared.shapes import require_dtype, require_places, require_shape

Counts = Int[Tensor, "b n"]


class Layout(NamedTuple):
    """Where segments find their keys: place j of segment n is slot n * `size` + j - `missing`."""

    size: int  # slots of a segment
    queries: int  # of a segment
    memory: int  # slots before a segment held for it
    reach: int  # a query sees itself and what is less than this behind it
    missing: int  # slots, counted from the first segment's memory, that are left out
    compressed: int  # slots before the memory, of their own
    step: int  # slots by which these move on from segment to segment
    missing_compressed: int  # of these, slots that are left out, counted from the first segment's


class Weights(NamedTuple):
    """u, v and W_R of the formula, by head."""

    u: Float[Tensor, "h d"]
    v: Float[Tensor, "h d"]
    W_R: Float[Tensor, "h r d"]


class Slots(NamedTuple):
    """Keys and values in the order of time, and compressed ones from before them, if there are any."""

    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s e"]
    compressed_k: Float[Tensor, "b h g d"] | None = None
    compressed_v: Float[Tensor, "b h g e"] | None = None


class RelativeCall(NamedTuple):
    """Inputs that fit one another, as `relative_attention` says."""

    q: Float[Tensor, "b h t d"]
    weights: Weights
    slots: Slots
    first: Counts
    count: Counts
    num_held: Counts
    layout: Layout


class RelativeGradients(NamedTuple):
    q: Tensor
    weights: Weights
    slots: Slots


BACKENDS = Backends[RelativeCall](__name__, "parallel", "reference")


def relative_attention(
    q: Float[Tensor, "b h t d"],
    weights: Weights,
    slots: Slots,
    *,
    first: Counts,
    count: Counts,
    num_held: Counts,
    layout: Layout,
) -> Float[Tensor, "b h t e"]:
    """What each segment's queries get; zeros where a segment has fewer than others.

    q         (batch, heads, tokens, d): all segments' queries, one segment after the other; a floating dtype,
              which weights and slots share
    first     int64 (batch, segments): the place within its segment of each segment's first query
    count     int64 (batch, segments): how many queries it has; the last may lack some
    num_held  int64 (batch, segments): how many of the slots before it hold something

    Raises `ValueError` for shapes or dtypes that do not fit.
    """
    require_fit(q, weights, slots, first, count, num_held)
    return call_op(relative_op, q, *weights, *slots, first, count, num_held, list(layout))[0]


def attention_received(
    q: Float[Tensor, "b h t d"],
    weights: Weights,
    k: Float[Tensor, "b h s d"],
    *,
    first: Counts,
    count: Counts,
    num_held: Counts,
    layout: Layout,
) -> Float[Tensor, "b h s"]:
    """The weights that all queries together give each key, where no slots are compressed; without gradients.

    Inputs are those of `relative_attention`. Scores are made once more, at the price that they have there.
    """
    require_fit(q, weights, Slots(k, k), first, count, num_held)
    with torch.no_grad():
        return call_op(received_op, q, *weights, k, first, count, num_held, list(layout))


def require_fit(
    q: Float[Tensor, "b h t d"],
    weights: Weights,
    slots: Slots,
    first: Counts,
    count: Counts,
    num_held: Counts,
) -> None:
    """Raise `ValueError` for what does not fit the queries."""
    b, h, _, d = q.shape
    for name, x in zip(("content biases", "position biases"), weights[:2], strict=True):
        require_shape(name, x, h, d)
    require_shape("position weights", weights.W_R, h, weights.W_R.shape[1] // 2 * 2, d)
    for k, v in (slots[:2], slots[2:]):
        if k is not None and v is not None:
            require_shape("keys", k, b, h, k.shape[2], d)
            require_shape("values", v, b, h, k.shape[2], slots.v.shape[3])
    for x in (*weights, *slots):
        if x is not None:
            require_dtype("weights, keys and values", x, q.dtype)
    for name, x in (("first places", first), ("counts of queries", count), ("counts of slots", num_held)):
        require_places(name, x, b, first.shape[1])


RELATIVE_SCHEMA = (
    "Tensor q, Tensor u, Tensor bias, Tensor W_R, Tensor k, Tensor v, Tensor? compressed_k, "
    "Tensor? compressed_v, Tensor first, Tensor count, Tensor num_held, int[] layout"
)
LEARNT = 8  # inputs that have gradients come first


def relative_call(q: Tensor, *inputs: Any) -> RelativeCall:
    first, count, num_held, layout = inputs[7:]
    weights, slots = Weights(*inputs[:3]), Slots(*inputs[3:7])
    return RelativeCall(q, weights, slots, first, count, num_held, Layout(*layout))


@torch.library.custom_op(
    "subquad::relative_attention",
    mutates_args=(),
    schema=f"({RELATIVE_SCHEMA}) -> (Tensor out, Tensor backend)",
)
def relative_op(*inputs: Any) -> tuple[Tensor, Tensor]:
    backend, out = BACKENDS.run("forward", relative_call(*inputs))
    return out, torch.tensor(backend)


@torch.library.custom_op(
    "subquad::relative_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor backend, {RELATIVE_SCHEMA}) "
    f"-> ({', '.join(['Tensor'] * LEARNT)})",
)
def relative_backward_op(grad: Tensor, out: Tensor, backend: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Gradients of the first `LEARNT` inputs; empty tensors for absent ones."""
    dq, weights, slots = BACKENDS[backend].backward(grad, relative_call(*inputs), out)
    return dq, *weights, *(grad.new_empty(0) if x is None else x for x in slots)


@torch.library.custom_op(
    "subquad::attention_received",
    mutates_args=(),
    schema="(Tensor q, Tensor u, Tensor bias, Tensor W_R, Tensor k, Tensor first, Tensor count, "
    "Tensor num_held, int[] layout) -> Tensor",
)
def received_op(
    q: Tensor, u: Tensor, bias: Tensor, W_R: Tensor, k: Tensor, *counts_and_layout: Any
) -> Tensor:
    first, count, num_held, layout = counts_and_layout
    weights, slots = Weights(u, bias, W_R), Slots(k, k[..., :0])
    call = RelativeCall(q, weights, slots, first, count, num_held, Layout(*layout))
    return BACKENDS.run("received", call)[1]


@relative_op.register_fake
def _(
    q: Tensor, u: Tensor, bias: Tensor, W_R: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return v.new_empty(*q.shape[:3], v.shape[3]), torch.empty((), dtype=torch.int64)


@relative_backward_op.register_fake
def _(grad: Tensor, out: Tensor, backend: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(out.new_empty(0 if x is None else x.shape) for x in inputs[:LEARNT])


@received_op.register_fake
def _(q: Tensor, u: Tensor, bias: Tensor, W_R: Tensor, k: Tensor, *_: Any) -> Tensor:
    return k.new_empty(k.shape[:3])


def save_relative(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.layout = inputs
    ctx.save_for_backward(*output, *tensors)


def relative_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: under checkpointing each look unpacks, and a second one fails
    gradients = call_op(relative_backward_op, grad, *saved, ctx.layout)
    inputs = saved[2 : 2 + LEARNT]
    return *(None if x is None else dx for x, dx in zip(inputs, gradients, strict=True)), *(None,) * 4


relative_op.register_autograd(relative_gradients, setup_context=save_relative)
differentiable_once(relative_backward_op)
differentiable_once(received_op)
