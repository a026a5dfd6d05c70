"""Softmax attention within buckets of sorted tokens, in rounds of sorting.

    out_i = sum_j exp(s_ij - lse_i) v_j,    s_ij = q_i . k_j / sqrt(d),    lse_i = log sum_j exp(s_ij)

In each round tokens stand in an order of its own, cut into chunks of c (`sorting.py`), and token i looks at
its chunk and the one before. It sees j there where label_i - label_j is 0 or 1, and where no earlier round
has shown j to it, so that a pair counts once. Rounds add up by their log-sum-exp. Nothing is kept for the
backward pass but the outputs and lse, from which it makes the weights again.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.backends import Backends
from subquad.ops.shared.operator import call_op, differentiable_once
from subquad.ops.shared.precision import read_narrow, wide, widened
from subquad.ops.shared.shapes import require_dtype, require_matching_inputs, require_places, require_shape
from subquad.ops.shared.unused import unused

Rounds = Int[Tensor, "b h r n"]


class Visibility(NamedTuple):
    """Who sees whom, except for labels; see `bucket_attention`."""

    size: int
    causal: bool
    last_n_only: bool
    self_only_if_alone: bool
    count_duplicates: bool


class BucketCall(NamedTuple):
    """Inputs that fit one another, as `bucket_attention` says; a chunk is never longer than the sequence."""

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b h n d"]
    v: Float[Tensor, "b h n e"]
    order: Rounds
    labels: Rounds
    visibility: Visibility


class BucketResult(NamedTuple):
    out: Float[Tensor, "b h n e"]
    lse: Float[Tensor, "b h n"]


BACKENDS = Backends[BucketCall](__name__, "cpu", "triton", "parallel", "reference")


def bucket_attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n e"],
    *,
    order: Rounds,
    labels: Rounds,
    size: int,
    causal: bool = False,
    last_n_only: bool = False,
    self_only_if_alone: bool = False,
    count_duplicates: bool = False,
) -> Float[Tensor, "b h n e"]:
    """What each token gets from those it sees, of which there must be one, in chunks of `size` tokens.

    q, k     (batch, heads, tokens, d), v (batch, heads, tokens, e): one dtype, widened if it is half
    order    int64 (batch, heads, rounds, tokens): the token at each sorted place
    labels   int32 or int64 (batch, heads, rounds, tokens): of each token, from -4 up

    causal              no token sees a later one
    last_n_only         of the sorted places only the last `size`, its own among them
    self_only_if_alone  itself only where it sees no other
    count_duplicates    a pair counts in each round that finds it

    Raises `ValueError` for shapes or dtypes that do not fit.
    """
    require_matching_inputs(q, k, v)
    require_shape("keys", k, *q.shape)
    rounds = order.shape[2]
    require_places("orders", order, *q.shape[:2], rounds, q.shape[2])
    require_shape("labels", labels, *q.shape[:2], rounds, q.shape[2])
    require_dtype("labels", labels, torch.int32, torch.int64)
    if q.shape[2] == 0:
        return v + unused(q, k)
    inputs = (q, k, v) if read_narrow(q) else wide(q, k, v)
    options = (size, causal, last_n_only, self_only_if_alone, count_duplicates)
    return call_op(buckets_op, *inputs, order, labels.to(torch.int32), *options)[0].to(v.dtype)


def bucket_call(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, labels: Tensor, size: int, *options: bool
) -> BucketCall:
    return BucketCall(q, k, v, order, labels, Visibility(min(size, q.shape[2]), *options))


BUCKETS_SCHEMA = (
    "Tensor q, Tensor k, Tensor v, Tensor order, Tensor labels, int size, bool causal, bool last_n_only, "
    "bool self_only_if_alone, bool count_duplicates"
)


@torch.library.custom_op(
    "subquad::bucket_attention",
    mutates_args=(),
    schema=f"({BUCKETS_SCHEMA}) -> (Tensor out, Tensor lse, Tensor backend)",
)
def buckets_op(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    backend, result = BACKENDS.run("forward", bucket_call(*inputs))
    return result.out, result.lse, torch.tensor(backend)


@torch.library.custom_op(
    "subquad::bucket_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor lse, Tensor backend, {BUCKETS_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor)",
)
def buckets_backward_op(
    grad: Tensor, out: Tensor, lse: Tensor, backend: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[backend].backward(grad, bucket_call(*inputs), BucketResult(out, lse))


@buckets_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        v.new_empty(v.shape),
        v.new_empty(v.shape[:3], dtype=widened(v.dtype)),
        torch.empty((), dtype=torch.int64),
    )


@buckets_backward_op.register_fake
def _(
    grad: Tensor, out: Tensor, lse: Tensor, backend: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def save_buckets(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:5])
    ctx.mark_non_differentiable(output[1])
    ctx.options = inputs[5:]


def bucket_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = call_op(buckets_backward_op, grad, *ctx.saved_tensors, *ctx.options)
    return *gradients, *(None for _ in range(7))


buckets_op.register_autograd(bucket_gradients, setup_context=save_buckets)
differentiable_once(buckets_backward_op)
