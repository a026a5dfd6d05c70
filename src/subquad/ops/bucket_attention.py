"""Softmax attention within buckets of sorted tokens, in rounds of sorting.

    out_i = sum_j exp(s_ij - lse_i) v_j,    s_ij = q_i . k_j / sqrt(d),    lse_i = log sum_j exp(s_ij)

In each round tokens stand in an order of its own, cut into chunks of c (`buckets.py`), and token i looks at
its chunk and the one before. It sees j there where mark_i - mark_j is 0 or 1, and where no earlier round
has shown j to it, so that a pair counts once. Rounds add up by their log-sum-exp. Nothing is kept for the
backward pass but the outputs and lse, from which it makes the weights again.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.allocation import empty_result
from subquad.ops.bucket_chunks import buffers, itself, places, rounds, slices, spread, windows
from subquad.ops.native import bucket as native
from subquad.ops.native.bucket import Sight
from subquad.ops.native.library import usable
from subquad.ops.operator import call_op, differentiable_once
from subquad.ops.shapes import require_dtype, require_places, require_shape, require_together

Keyed = Float[Tensor, "b h n d"]
Values = Float[Tensor, "b h n e"]
Rows = Float[Tensor, "b h n"]
Rounds = Int[Tensor, "b h r n"]


def bucket_attention(
    q: Keyed,
    k: Keyed,
    v: Values,
    *,
    order: Rounds,
    marks: Rounds,
    size: int,
    causal: bool = False,
    band: bool = False,
    alone: bool = False,
    repeats: bool = False,
) -> Values:
    """What each token gets from those it sees, of which there must be one, in chunks of `size`.

    `order` is the token at each sorted place, `marks` are by token, from -4 up. `causal`: no token later than
    itself. `band`: the last `size` places, its own among them. `alone`: itself only where it sees no other.
    `repeats`: a pair counts in each round that finds it. Raises `ValueError` for shapes or dtypes that do not
    fit.
    """
    require_together(q, k, v)
    require_shape("keys", k, *q.shape)
    rounds = order.shape[2]
    require_places("orders", order, *q.shape[:2], rounds, q.shape[2])
    require_shape("marks", marks, *q.shape[:2], rounds, q.shape[2])
    require_dtype("marks", marks, torch.int32, torch.int64)
    if q.shape[2] == 0:
        return v
    marks = marks.to(torch.int32)
    return call_op(forward, q, k, v, order, marks, size, causal, band, alone, repeats)[0]


INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor order, Tensor marks, "
    "int size, bool causal, bool band, bool alone, bool repeats"
)


@torch.library.custom_op(
    "subquad::bucket_attention", mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor)"
)
def forward(
    q: Keyed,
    k: Keyed,
    v: Values,
    order: Rounds,
    marks: Rounds,
    size: int,
    causal: bool,
    band: bool,
    alone: bool,
    repeats: bool,
) -> tuple[Values, Rows]:
    sight = Sight(min(size, q.shape[2]), causal, band, alone, repeats)
    if usable(q, k, v):
        return native.forward(q, k, v, order, marks, sight)
    out, lse = empty_result(v), v.new_empty(v.shape[:3])
    Q, K, V, order, marks, outs, logs = (x.flatten(0, 1) for x in (q, k, v, order, marks, out, lse))
    for heads in slices(len(Q), q.shape[2]):
        some = rounds(order[heads], marks[heads], sight)
        sources = [x[heads].flatten(0, 1) for x in (Q, K, V)]
        memory = buffers(v, some[0], sources)
        given, mass = (torch.stack(buffers(v, some[0], [x] * len(some))) for x in (v, v[..., :1]))
        for number, round in enumerate(some):
            own, keys, values = map(round.take, sources, memory)
            for here in round.blocks():
                weights, mass[number, here] = round.weigh(own, keys, here)
                torch.bmm(weights, windows(values, here), out=given[number, here])
        place = places(order[heads], sight.size)
        shares = mass.flatten()[place]
        merged = F.embedding_bag(
            place, given.flatten(0, 2), mode="sum", per_sample_weights=shares.softmax(-1)
        )
        logs[heads] = shares.logsumexp(-1).view_as(logs[heads])
        outs[heads] = merged.view_as(outs[heads])
    return out, lse


@torch.library.custom_op(
    "subquad::bucket_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor lse, {INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def backward(
    grad: Values,
    out: Values,
    lse: Rows,
    q: Keyed,
    k: Keyed,
    v: Values,
    order: Rounds,
    marks: Rounds,
    size: int,
    causal: bool,
    band: bool,
    alone: bool,
    repeats: bool,
) -> tuple[Keyed, Keyed, Values]:
    sight = Sight(min(size, q.shape[2]), causal, band, alone, repeats)
    if usable(q, k, v, grad):
        return native.backward(grad, out, lse, q, k, v, order, marks, sight)
    changes = [empty_result(x).zero_() for x in (q, k, v)]
    delta = (grad * out).sum(-1, keepdim=True)
    length, scale = q.shape[2], q.shape[3] ** -0.5
    inputs = [x.flatten(0, 1) for x in (q, k, v, grad, delta, lse[..., None])]
    order, marks = order.flatten(0, 1), marks.flatten(0, 1)
    for heads in slices(len(order), length):
        some = rounds(order[heads], marks[heads], sight)
        sources = [x[heads].flatten(0, 1) for x in inputs]
        memory, found = buffers(v, some[0], sources), buffers(v, some[0], sources[:3])
        for round in some:
            own, keys, values, grads, deltas, tops = map(round.take, sources, memory)
            tops.masked_fill_(round.free, torch.inf)
            dq, dk, dv = (x.zero_() for x in found)
            for here in round.blocks():
                weights, mass = round.weigh(own, keys, here)
                weights.mul_(mass.sub_(tops[here]).exp_())
                change = torch.bmm(grads[here], windows(values, here).mT)
                change.sub_(deltas[here]).mul_(weights).mul_(scale)
                if alone:
                    itself(change).zero_()  # its score is a constant
                spread(dv, weights.mT @ grads[here], here)
                spread(dk, change.mT @ own[here], here)
                torch.bmm(change, windows(keys, here), out=dq[here])
            for to, x in zip(changes, found, strict=True):
                rows = to.view(-1, length, to.shape[3])[heads].flatten(0, 1)
                rows.index_add_(0, round.source, x.flatten(0, 1))
    dq, dk, dv = changes
    return dq, dk, dv


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape[:3])


@backward.register_fake
def _(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:5])
    ctx.mark_non_differentiable(output[1])
    ctx.options = inputs[5:]


def gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    found = call_op(backward, grad, *ctx.saved_tensors, *ctx.options)
    return *found, *(None for _ in range(7))


forward.register_autograd(gradients, setup_context=remember)
differentiable_once(backward)
