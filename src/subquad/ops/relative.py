"""Attention of segments to what was remembered before them, by content and by distance, as one operator.

    out_i = sum_j softmax_j(a_ij) v_j,    a_ij = ((q_i + u) . k_j + (q_i + v) . W_R r_(i-j)) / sqrt(d)

The second term looks like a matrix of scores by distance that has to be shifted row by row. It need not be:
by the addition theorems a . r_(i-j) = turn_i(a) . r_j, where turn_i rotates each pair of sine and cosine.

Places i and j count from the beginning of the query's own segment, so that r_j is the same for all segments
and heads. A block of one segment's queries stands beside the slices of keys that any of them sees; what is
made of it stays in cache. Nothing is kept for the backward pass but the outputs: it makes the weights again.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.allocation import empty_result
from subquad.ops.operator import call_op, differentiable_once
from subquad.ops.shapes import require_dtype, require_places, require_shape

BLOCK = 160  # queries at once, of one segment
SCORES = 2**18  # at once, at least a head's

Rows = Float[Tensor, "b h t d"]
Counts = Int[Tensor, "b n"]


class Layout(NamedTuple):
    """Where segments find their keys: place j of segment n is slot n * `size` + j - `missing` of the line."""

    size: int  # slots of a segment
    queries: int  # of a segment
    memory: int  # slots before a segment that the line holds for it
    reach: int  # a query sees itself and what is less than this behind it
    missing: int  # slots, counted from the first segment's memory, that the line leaves out
    far: int  # slots before the memory, from a line of their own
    step: int  # slots by which that line moves on from segment to segment
    missing_far: int  # slots that it leaves out, counted from the first segment's


class Weights(NamedTuple):
    u: Float[Tensor, "h d"]
    v: Float[Tensor, "h d"]
    W_R: Float[Tensor, "h r d"]


class Lines(NamedTuple):
    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s e"]
    far_k: Float[Tensor, "b h g d"] | None = None
    far_v: Float[Tensor, "b h g e"] | None = None


def relative_attention(
    q: Rows, weights: Weights, lines: Lines, *, first: Counts, count: Counts, held: Counts, layout: Layout
) -> Rows:
    """What each segment's queries get; zeros where a segment has fewer than others.

    Of each segment's queries `count` are there, from place `first` of it on; the last may lack some. Of the
    slots before it, `held` hold something. Raises `ValueError` for shapes or dtypes that do not fit.
    """
    require_fit(q, weights, lines, first, count, held)
    return call_op(forward, q, *weights, *lines, first, count, held, list(layout))


def require_fit(q: Rows, weights: Weights, lines: Lines, first: Counts, count: Counts, held: Counts) -> None:
    """Raise `ValueError` for what does not fit the queries."""
    b, h, _, d = q.shape
    for name, x in zip(("content biases", "position biases"), weights[:2], strict=True):
        require_shape(name, x, h, d)
    require_shape("position weights", weights.W_R, h, weights.W_R.shape[1] // 2 * 2, d)
    for k, v in (lines[:2], lines[2:]):
        if k is not None and v is not None:
            require_shape("keys", k, b, h, k.shape[2], d)
            require_shape("values", v, b, h, k.shape[2], lines.v.shape[3])
    for x in (*weights, *lines):
        if x is not None:
            require_dtype("weights, keys and values", x, q.dtype)
    for name, x in (("first places", first), ("counts of queries", count), ("counts of slots", held)):
        require_places(name, x, b, first.shape[1])


INPUTS = (
    "Tensor q, Tensor u, Tensor bias, Tensor W_R, Tensor k, Tensor v, Tensor? far_k, Tensor? far_v, "
    "Tensor first, Tensor count, Tensor held, int[] layout"
)
GRADIENTS = 8  # inputs that have gradients come first


class Block(NamedTuple):
    """Some queries of one segment of one row, in some heads, and the keys that any of them sees."""

    row: int
    heads: slice
    at: slice  # of the queries
    place: int  # of the first query
    start: int  # the place of the first key; the last is that of the last query
    near: slice  # slots of the line
    far: slice  # slots of the line before it

    def take(self, near: Tensor, far: Tensor | None) -> Tensor:
        """The keys, or values."""
        found = near[self.row, self.heads, self.near]
        if far is None or self.far.start == self.far.stop:
            return found
        return torch.cat([far[self.row, self.heads, self.far], found], 1)

    def put(self, x: Tensor, near: Tensor, far: Tensor | None) -> None:
        """Add to each line its part of the gradient `x`."""
        slots = self.far.stop - self.far.start
        near[self.row, self.heads, self.near] += x[:, slots:]
        if far is not None and slots:
            far[self.row, self.heads, self.far] += x[:, :slots]

    def hide(self, scores: Tensor, later: Tensor, reach: int) -> None:
        """Those of `later` keys, and of what is out of reach."""
        rows = scores.shape[1]
        scores[..., -rows:] += later[:rows, :rows]
        beyond = self.place - reach - self.start  # the last key that the first query does not reach
        if (columns := beyond + rows) > 0:
            mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(beyond)
            scores[..., :columns].masked_fill_(mask, -torch.inf)


def blocks(q: Tensor, first: Tensor, count: Tensor, held: Tensor, layout: Layout) -> Iterator[Block]:
    heads, l, m = q.shape[1], layout.size, layout.memory
    for row, counts in enumerate(zip(first.tolist(), count.tolist(), held.tolist(), strict=True)):
        for n, (begin, queries, behind) in enumerate(zip(*counts, strict=True)):
            step = -(-queries // max(1, -(-queries // BLOCK)))
            for a in range(0, queries, max(1, step)):
                place, stop = begin + a, begin + min(a + step, queries)
                start = max(-behind, place - layout.reach + 1)
                line = n * l + m - layout.missing
                near = slice(line + max(start, -m), line + stop)
                line = n * layout.step + layout.far - layout.missing_far
                far = slice(line + min(0, start + m), line)
                group = max(1, SCORES // ((stop - place) * (stop - start)))
                at = slice(n * layout.queries + a, n * layout.queries + a + stop - place)
                for head in range(0, heads, group):
                    yield Block(row, slice(head, head + group), at, place, start, near, far)


class Given(NamedTuple):
    """What a block's weights are made of."""

    content: Float[Tensor, "h w d"]
    turned: Float[Tensor, "h w r"]
    keys: Float[Tensor, "h s d"]
    r: Float[Tensor, "s r"]  # of the keys' places
    own: Float[Tensor, "w r"]  # of the queries'

    def scores(self) -> Float[Tensor, "h w s"]:
        by_place = (self.turned.flatten(0, 1) @ self.r.mT).unflatten(0, self.turned.shape[:2])
        return by_place.baddbmm_(self.content, self.keys.mT)


class Scores:
    """What all blocks share: the weights with the factor 1 / sqrt(d), r for all places, and a mask."""

    def __init__(self, q: Tensor, u: Tensor, bias: Tensor, W_R: Tensor, layout: Layout) -> None:
        self.scale, self.first, self.reach = q.shape[3] ** -0.5, -layout.memory - layout.far, layout.reach
        self.u, self.bias, self.W = u[:, None], bias[:, None], W_R * self.scale
        places = torch.arange(self.first, layout.size, device=q.device)
        self.r = sinusoid(places, W_R.shape[1], like=q)
        self.later = q.new_full((BLOCK, BLOCK), -torch.inf).triu(1)

    def prepare(self, block: Block, q: Tensor, k: Tensor, far_k: Tensor | None) -> Given:
        q, heads = q[block.row, block.heads, block.at], block.heads
        place, stop = block.place - self.first, block.place - self.first + q.shape[1]
        own, r = self.r[place:stop], self.r[block.start - self.first : stop]
        turned = turn(torch.bmm(q + self.bias[heads], self.W[heads].mT), own)
        return Given((q + self.u[heads]).mul_(self.scale), turned, block.take(k, far_k), r, own)

    def weigh(self, block: Block, given: Given) -> Float[Tensor, "h w s"]:
        scores = given.scores()
        block.hide(scores, self.later, self.reach)
        return torch.softmax(scores, -1, out=scores)


@torch.library.custom_op("subquad::relative_attention", mutates_args=(), schema=f"({INPUTS}) -> Tensor")
def forward(
    q: Tensor,
    u: Tensor,
    bias: Tensor,
    W_R: Tensor,
    k: Tensor,
    v: Tensor,
    far_k: Tensor | None,
    far_v: Tensor | None,
    first: Tensor,
    count: Tensor,
    held: Tensor,
    layout: list[int],
) -> Tensor:
    laid = Layout(*layout)
    scores, out = Scores(q, u, bias, W_R, laid), empty_result(v, *q.shape[:3], v.shape[3])
    if count.sum() < len(q) * q.shape[2]:
        out.zero_()
    for block in blocks(q, first, count, held, laid):
        weights = scores.weigh(block, scores.prepare(block, q, k, far_k))
        out[block.row, block.heads, block.at] = torch.bmm(weights, block.take(v, far_v))
    return out


@torch.library.custom_op(
    "subquad::relative_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, {INPUTS}) -> ({', '.join(['Tensor'] * GRADIENTS)})",
)
def backward(
    grad: Tensor,
    out: Tensor,
    q: Tensor,
    u: Tensor,
    bias: Tensor,
    W_R: Tensor,
    k: Tensor,
    v: Tensor,
    far_k: Tensor | None,
    far_v: Tensor | None,
    first: Tensor,
    count: Tensor,
    held: Tensor,
    layout: list[int],
) -> tuple[Tensor, ...]:
    """Gradients of the first `GRADIENTS` inputs; no numbers for what there is not."""
    laid = Layout(*layout)
    scores = Scores(q, u, bias, W_R, laid)
    dq, dk, dv = (empty_result(x).zero_() for x in (q, k, v))
    du, dbias, dW_R = (torch.zeros_like(x) for x in (u, bias, W_R))
    dfar_k, dfar_v = (None if x is None else empty_result(x).zero_() for x in (far_k, far_v))
    for block in blocks(q, first, count, held, laid):
        row, heads, at = block[:3]
        given, g = scores.prepare(block, q, k, far_k), grad[row, heads, at]
        weights = scores.weigh(block, given)
        block.put(torch.bmm(weights.mT, g), dv, dfar_v)
        change = torch.bmm(g, block.take(v, far_v).mT)
        change.sub_((g * out[row, heads, at]).sum(-1, keepdim=True)).mul_(weights)
        block.put(torch.bmm(change.mT, given.content), dk, dfar_k)
        by_content = torch.bmm(change, given.keys).mul_(scores.scale)
        pulled = (change.flatten(0, 1) @ given.r).view_as(given.turned)
        pulled = turn(pulled, given.own)  # which is its own inverse
        by_place = torch.bmm(pulled, scores.W[heads])
        own = q[row, heads, at] + scores.bias[heads]
        dW_R[heads] += torch.bmm(pulled.mT, own).mul_(scores.scale)
        du[heads] += by_content.sum(1)
        dbias[heads] += by_place.sum(1)
        dq[row, heads, at] = by_content.add_(by_place)
    nothing = (q.new_empty(0) if x is None else x for x in (dfar_k, dfar_v))
    return dq, du, dbias, dW_R, dk, dv, *nothing


@forward.register_fake
def _(q: Tensor, u: Tensor, bias: Tensor, W_R: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty(*q.shape[:3], v.shape[3])


@backward.register_fake
def _(grad: Tensor, out: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(out.new_empty(0 if x is None else x.shape) for x in inputs[:GRADIENTS])


def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.layout = inputs
    ctx.save_for_backward(output, *tensors)


def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: under checkpointing each look unpacks, and a second one fails
    found = call_op(backward, grad, *saved, ctx.layout)
    given = saved[1 : 1 + GRADIENTS]
    return *(None if x is None else dx for x, dx in zip(given, found, strict=True)), *(None,) * 4


forward.register_autograd(gradients, setup_context=remember)
differentiable_once(backward)


def sinusoid(n: Int[Tensor, "*n"], width: int, *, like: Tensor) -> Float[Tensor, "*n {width}"]:
    """r_n: the sines of all frequencies, then the cosines."""
    m = torch.arange(width // 2, dtype=like.dtype, device=like.device)
    angle = n[..., None] * 10_000.0 ** (-2 * m / width)
    return torch.cat([angle.sin(), angle.cos()], -1)


def turn(a: Float[Tensor, "*n r"], r: Float[Tensor, "*#n r"]) -> Float[Tensor, "*n r"]:
    """The vector whose product with r_j is that of `a` with r_(i-j), where `r` is r_i; its own inverse."""
    a_sin, a_cos = a.chunk(2, -1)
    sin, cos = r.chunk(2, -1)
    halves = torch.addcmul(a_cos * sin, a_sin, cos, value=-1), torch.addcmul(a_sin * sin, a_cos, cos)
    return torch.cat(halves, -1)
