"""Softmax attention within buckets of sorted tokens, in rounds of sorting, a block of chunks at a time.

    out_i = sum_j exp(s_ij - lse_i) v_j,    s_ij = q_i . k_j / sqrt(d),    lse_i = log sum_j exp(s_ij)

In each round tokens stand in an order of its own, cut into chunks of c (`buckets.py`), and token i looks at
its chunk and the one before. It sees j there where mark_i - mark_j is 0 or 1, and where no earlier round
has shown j to it, so that a pair counts once. Rounds add up by their log-sum-exp.

Rows are gathered whole, and scores live in one block that stays in the cache. Whether an earlier round found
a pair is asked of marks doubled, |2 mark_i - 1 - 2 mark_j| = 1, in integers of 16 bits where they suffice:
a subtraction, an absolute value and a minimum for each. Nothing is kept for the backward pass but the outputs
and lse, from which it makes the weights again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Keyed = Float[Tensor, "b h n d"]
Values = Float[Tensor, "b h n e"]
Rows = Float[Tensor, "b h n"]
Rounds = Int[Tensor, "b h r n"]

ALONE = -1e5  # the score of a token with itself, where it should see itself only for want of others
HIDDEN = 1e30  # taken off scores, once or more
NOWHERE = -8  # the mark of a free place; below it and above -2, marks are the caller's
TOKENS = 8192  # that are gathered at once, at least a head's
SCORES = 2**19  # that are in the cache at once, at least a chunk's


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
    `repeats`: a pair counts in each round that finds it.
    """
    if q.shape[2] == 0:
        return v
    small = 6 * (marks.shape[3] // size + 4) < torch.iinfo(torch.int16).max
    marks = marks.to(torch.int16 if small else torch.int32)
    return torch.ops.subquad.bucket_attention(q, k, v, order, marks, size, causal, band, alone, repeats)[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """Who sees whom, but for the marks."""

    size: int
    causal: bool
    band: bool
    alone: bool
    repeats: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """Some heads' tokens in one round's order, the chunks of all heads in a row, an empty one before each."""

    number: int
    source: Int[Tensor, " s"]  # the token at each place, of all the heads' tokens
    real: Float[Tensor, "w c 1"]  # 1 where a token stands, 0 at free places
    marks: Int[Tensor, "r w c"]  # of this round and of those before
    position: Float[Tensor, "w c"]

    def take(self, x: Tensor, into: Tensor) -> Tensor:
        """Rows of `x` in this order, chunk by chunk."""
        torch.index_select(x, 0, self.source, out=into.flatten(0, 1))
        return into


class Blocks:
    """Scores of a block of chunks with themselves and the chunks before them, in memory that is reused."""

    def __init__(self, like: Tensor, marks: Tensor, chunks: int, sight: Sight) -> None:
        self.sight = sight
        c = sight.size
        self.chunks = min(chunks - 1, max(1, SCORES // (2 * c * c)))
        shape = self.chunks, c, 2 * c
        self.scores, self.bias = (like.new_empty(shape) for _ in range(2))
        self.own, self.other = (marks.new_empty(shape) for _ in range(2))
        row, column = torch.arange(c, device=like.device)[:, None], torch.arange(2 * c, device=like.device)
        self.outside = like.new_zeros(c, 2 * c).masked_fill_((column <= row) | (column > row + c), -HIDDEN)

    def of(self, chunks: int) -> Iterator[slice]:
        """Chunks in blocks, from the second."""
        for start in range(1, chunks, self.chunks):
            yield slice(start, min(start + self.chunks, chunks))

    def weigh(
        self, q: Tensor, k: Tensor, here: slice, round: Round
    ) -> tuple[Float[Tensor, "w c k"], Float[Tensor, "w c 1"]]:
        """Weights within the round, and the logarithm of their sum before they were divided by it.

        The logarithm follows from the greatest weight, for torch's `exp` is slow where it underflows, and its
        softmax is not.
        """
        scores = self.score(q, k, here, round)
        weights = torch.softmax(scores, -1, out=self.bias[: len(scores)])
        return weights, scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log_()

    def score(self, q: Tensor, k: Tensor, here: slice, round: Round) -> Float[Tensor, "w c k"]:
        """Scores of the queries in the chunks `here`; far below all others where a key is hidden."""
        count = here.stop - here.start
        scores, bias = self.scores[:count], self.bias[:count]
        torch.bmm(q[here], windows(k, here).mT, out=scores)
        scores.mul_(q.shape[-1] ** -0.5)
        if self.sight.alone:
            itself(scores).fill_(ALONE)
        bias.copy_(self._hidden(round, here))
        scores.add_(bias, alpha=-HIDDEN)
        if self.sight.causal:
            when = round.position
            torch.sub(when[here, :, None], windows(when, here)[:, None], out=bias)
            scores.add_(bias.clamp_(max=0), alpha=HIDDEN)
        if self.sight.band:
            scores.add_(self.outside)
        return scores

    def _hidden(self, round: Round, here: slice) -> Int[Tensor, "w c k"]:
        """Zero where a key is seen, by its marks."""
        own = self._apart(round, round.number, here, self.own)
        if round.number > 0 and not self.sight.repeats:
            least = self._apart(round, 0, here, torch.empty_like(own))
            for earlier in range(1, round.number):
                torch.minimum(least, self._apart(round, earlier, here, self.other), out=least)
            torch.maximum(own, least.neg_().add_(4), out=own)  # 3 where found before
        return own.sub_(1)

    def _apart(self, round: Round, number: int, here: slice, into: Tensor) -> Int[Tensor, "w c k"]:
        """An odd number, 1 where the key is near in the round of that number."""
        marks, into = round.marks[number], into[: here.stop - here.start]
        torch.sub((2 * marks[here] - 1)[..., None], windows(2 * marks, here)[:, None], out=into)
        return into.abs_()


def windows(x: Tensor, here: slice) -> Tensor:
    """The chunks `here`, each with the one before it in front: a view."""
    c = x.shape[1]
    found = x[here.start - 1 : here.stop].flatten(0, 1).unfold(0, 2 * c, c)
    return found.mT if x.ndim == 3 else found


def itself(scores: Tensor) -> Tensor:
    """The score of each token with itself: a view."""
    return scores.diagonal(scores.shape[1], 1, 2)


def spread(x: Tensor, by: Tensor, here: slice) -> None:
    """Add to `x` what the chunks `here` give to themselves and to the ones before them."""
    c = x.shape[1]
    x[here.start - 1 : here.stop - 1] += by[:, :c]
    x[here] += by[:, c:]


def slices(groups: int, length: int) -> Iterator[slice]:
    """Heads in slices."""
    step = max(1, TOKENS // length)
    for start in range(0, groups, step):
        yield slice(start, min(start + step, groups))


def rounds(order: Int[Tensor, "g r n"], marks: Int[Tensor, "g r n"], size: int, like: Tensor) -> list[Round]:
    """The rounds of some heads."""
    groups, count, length = order.shape
    chunks = 1 + -(-length // size)
    places = order[..., :1].expand(-1, -1, chunks * size).clone()  # free places repeat a token of the row
    places[..., size : size + length] = order
    first = length * torch.arange(groups, device=order.device)[:, None]
    real = like.new_zeros(groups, chunks * size)
    real[:, size : size + length] = 1
    marks, free = marks.transpose(0, 1).flatten(1), real.flatten() == 0
    found = []
    for number in range(count):
        source = (places[:, number] + first).flatten()
        here = marks[: number + 1].index_select(1, source).masked_fill_(free, NOWHERE)
        position = places[:, number].to(like.dtype).view(-1, size)
        found.append(
            Round(
                number=number,
                source=source,
                real=real.view(-1, size, 1),
                marks=here.unflatten(1, (-1, size)),
                position=position,
            )
        )
    return found


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
    sight = Sight(size=size, causal=causal, band=band, alone=alone, repeats=repeats)
    out, lse = v.new_empty(v.shape), v.new_empty(v.shape[:3])
    length, count = q.shape[2], order.shape[2]
    Q, K, V, order, marks, out_, lse_ = (x.flatten(0, 1) for x in (q, k, v, order, marks, out, lse))
    chunks = 1 + -(-length // size)
    memory, given, weight = buffers(v, 0, size, (q, k, v)), v, v
    blocks = Blocks(v, marks, 1, sight)
    for heads in slices(len(Q), length):
        some = rounds(order[heads], marks[heads], size, v)
        total = len(some[0].position)
        if len(memory[0]) != total:
            memory = buffers(v, total, size, (q, k, v))
            given = v.new_empty(count, total, size, v.shape[3])
            weight = v.new_empty(count, total, size, 1)
            blocks = Blocks(v, marks, total, sight)
        sources = [x[heads].flatten(0, 1) for x in (Q, K, V)]
        for round in some:
            own, keys, values = (round.take(x, y) for x, y in zip(sources, memory, strict=True))
            for here in blocks.of(total):
                weights, mass = blocks.weigh(own, keys, here, round)
                torch.bmm(weights, windows(values, here), out=given[round.number, here])
                weight[round.number, here] = mass
        group = torch.arange(heads.stop - heads.start, device=q.device)[:, None, None]
        place = torch.empty_like(order[heads]).scatter_(
            2, order[heads], torch.arange(length, device=q.device).expand_as(order[heads])
        )
        place = (
            place
            + size
            + chunks * size * (group + len(group) * torch.arange(count, device=q.device)[:, None])
        )
        place = place.mT.flatten(0, 1)  # of each token in each round
        shares = weight.flatten()[place]
        lse_[heads] = shares.logsumexp(-1).view_as(lse_[heads])
        out_[heads] = F.embedding_bag(
            place, given.flatten(0, 2), mode="sum", per_sample_weights=shares.softmax(-1)
        ).view_as(out_[heads])
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
    sight = Sight(size=size, causal=causal, band=band, alone=alone, repeats=repeats)
    dq_, dk_, dv_ = changes = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    delta = (grad * out).sum(-1, keepdim=True).flatten(0, 1)
    length, scale = q.shape[2], q.shape[3] ** -0.5
    order, marks, lse = (x.flatten(0, 1) for x in (order, marks, lse))
    inputs = [x.flatten(0, 1) for x in (q, k, v, grad)]
    memory = found = buffers(v, 0, size, inputs)
    blocks, slopes = Blocks(v, marks, 1, sight), v
    for heads in slices(len(order), length):
        some = rounds(order[heads], marks[heads], size, v)
        total = len(some[0].position)
        if len(memory[0]) != total:
            memory = buffers(v, total, size, inputs)
            found = [torch.empty_like(x) for x in memory[:3]]
            blocks = Blocks(v, marks, total, sight)
            slopes = torch.empty_like(blocks.scores)
        sources = [x[heads].flatten(0, 1) for x in inputs]
        for round in some:
            own, keys, values, grads = (round.take(x, y) for x, y in zip(sources, memory, strict=True))
            shape = total, size, 1
            free = round.real == 0
            tops = lse[heads].flatten()[round.source].view(shape).masked_fill_(free, torch.inf)
            deltas = delta[heads].flatten()[round.source].view(shape)
            dq, dk, dv = (x.zero_() for x in found)
            for here in blocks.of(total):
                weights, mass = blocks.weigh(own, keys, here, round)
                weights.mul_(mass.sub_(tops[here]).exp_())
                change = slopes[: len(weights)]
                torch.bmm(grads[here], windows(values, here).mT, out=change)
                change.sub_(deltas[here]).mul_(weights).mul_(scale)
                if alone:
                    itself(change).zero_()  # its score is a constant
                spread(dv, weights.mT @ grads[here], here)
                spread(dk, change.mT @ own[here], here)
                torch.bmm(change, windows(keys, here), out=dq[here])
            for to, x in zip(changes, found, strict=True):
                rows = to.view(-1, length, to.shape[3])[heads].flatten(0, 1)
                rows.index_add_(0, round.source, x.flatten(0, 1))
    return dq_, dk_, dv_


def buffers(like: Tensor, total: int, size: int, inputs: Iterable[Tensor]) -> list[Tensor]:
    """Memory for the chunks of each input."""
    return [like.new_empty(total, size, x.shape[-1]) for x in inputs]


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
    found = torch.ops.subquad.bucket_attention_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *found, *(None for _ in range(7))


forward.register_autograd(gradients, setup_context=remember)
