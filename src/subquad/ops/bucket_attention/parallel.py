"""Buckets in PyTorch's operators, for devices whose numbers the host does not look at.

The chunks of all rounds lie side by side. Gradients come back to tokens as outputs do, from places that are
read: nothing is added where it happens to arrive, and the same inputs give the same bits.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.bucket_attention import BucketCall, BucketResult
from subquad.ops.bucket_attention.rounds import (
    ALONE,
    HIDDEN,
    NOWHERE,
    BlockScores,
    Chunked,
    itself,
    places,
    spread,
    windows,
)
from subquad.ops.shared.parallel import turns, why_not_parallel
from subquad.ops.shared.precision import wide, widened

ELSEWHERE = -(2**30)  # the label of a query that is near no key

Tokens = Float[Tensor, "s _"]  # of some heads, one after another


def refuses(call: BucketCall) -> str | None:
    return why_not_parallel(call.q)


def forward(call: BucketCall) -> BucketResult:
    q, k, v = (x.flatten(0, 2) for x in call[:3])
    out, lse = v.new_empty(v.shape), v.new_empty(len(v), dtype=widened(v.dtype))
    for heads in parts(call):
        chunks = Chunks(call, heads)
        outputs, mass = chunks.empty(v), chunks.empty(v[:, :1])
        for here in chunks.blocks():
            own, keys = chunks.take(q, here), chunks.windows(k, here)
            weights, mass[here] = chunks.weigh(own, keys, here)
            torch.bmm(weights, chunks.windows(v, here), out=outputs[here])
        shares = mass.flatten()[chunks.places]
        out[chunks.rows] = chunks.gathered(outputs, shares.softmax(-1))
        lse[chunks.rows] = shares.logsumexp(-1)
    return BucketResult(out.view(call.v.shape), lse.view(call.v.shape[:3]))


def backward(grad: Tensor, call: BucketCall, result: BucketResult) -> tuple[Tensor, Tensor, Tensor]:
    scale = call.q.shape[3] ** -0.5
    delta = (grad * result.out).sum(-1, keepdim=True, dtype=result.lse.dtype)
    inputs = (*call[:3], grad, delta, result.lse[..., None])
    q, k, v, g, delta, lse = (x.flatten(0, 2) for x in inputs)
    gradients = [x.new_empty(x.shape) for x in (q, k, v)]
    for heads in parts(call):
        chunks = Chunks(call, heads)
        found = dq, dk, dv = [chunks.empty(x).zero_() for x in (q, k, v)]
        for here in chunks.blocks():
            own, grads, deltas, tops = (chunks.take(x, here) for x in (q, g, delta, lse))
            keys, values = (chunks.windows(x, here) for x in (k, v))
            tops.masked_fill_(chunks.free[here], torch.inf)
            weights = chunks.scores(own, keys, here).sub_(tops).exp_()
            change = torch.bmm(grads, values.mT).sub_(deltas).mul_(weights).mul_(scale)
            torch.bmm(change, keys, out=dq[here])
            spread(dk, change.mT @ own, here)
            spread(dv, weights.mT @ grads, here)
        for to, x in zip(gradients, found, strict=True):
            to[chunks.rows] = chunks.gathered(x)
    dq, dk, dv = (x.view(y.shape) for x, y in zip(gradients, call[:3], strict=True))
    return dq, dk, dv


class Chunks:
    """Some heads' tokens in the order of each round, in chunks; an empty one before each head's first."""

    def __init__(self, call: BucketCall, heads: slice) -> None:
        order, labels = (x.flatten(0, 1)[heads] for x in (call.order, call.labels))
        (count, rounds, length), device = order.shape, order.device
        self.call, self.size = call, call.visibility.size
        self.rows = slice(heads.start * length, heads.stop * length)
        self.places = places(order, self.size)
        around = self.size, -length % self.size
        token = F.pad(order.transpose(0, 1), around)  # free places repeat one of the head's
        self.position = token.to(torch.int32).view(-1, self.size)
        self.source = (token + length * torch.arange(count, device=device)[:, None]).flatten()
        place = torch.arange(token.shape[2], device=device)
        free = (place < self.size) | (place >= self.size + length)
        self.free = free.repeat(rounds * count).view(-1, self.size, 1)
        labels = labels.transpose(0, 1).flatten(1).index_select(1, self.source)
        labels = labels.masked_fill_(self.free.flatten(), NOWHERE).view(rounds, rounds, -1)
        self.labels = labels.diagonal(0, 0, 1).mT.reshape(-1, self.size)  # of each round, in its own order
        self.keys = labels.view(rounds, -1, self.size)  # of all rounds, in the order of each
        round = torch.arange(rounds, device=device)
        later = (round[:, None] >= round)[..., None]  # what is no earlier round's hides nothing
        self.queries = labels.masked_fill(later, ELSEWHERE).view_as(self.keys)

    def blocks(self) -> Iterator[slice]:
        """Chunks in blocks, from the second."""
        for block in turns(len(self.labels) - 1, numbers(self.call)):
            yield slice(block.start + 1, block.stop + 1)

    def empty(self, x: Tokens) -> Chunked:
        """Room for a row at each place."""
        return x.new_empty(*self.labels.shape, x.shape[1], dtype=widened(x.dtype))

    def take(self, x: Tokens, here: slice) -> Chunked:
        """Rows of `x` in the chunks `here`."""
        source = self.source.view(-1, self.size)[here].flatten()
        (rows,) = wide(x[self.rows].index_select(0, source))
        return rows.unflatten(0, (-1, self.size))

    def windows(self, x: Tokens, here: slice) -> Float[Tensor, "x k d"]:
        """The same, each chunk with the one before it in front."""
        return windows(self.take(x, slice(here.start - 1, here.stop)), slice(1, None))

    def gathered(self, x: Chunked, weights: Float[Tensor, "s r"] | None = None) -> Tokens:
        """For each token the sum, or a weighted one, of what stands at its places."""
        return F.embedding_bag(self.places, x.flatten(0, 1), mode="sum", per_sample_weights=weights)

    def weigh(
        self, q: Chunked, k: Float[Tensor, "x k d"], here: slice
    ) -> tuple[BlockScores, Float[Tensor, "x c 1"]]:
        """As `Round.weigh`."""
        scores = self.scores(q, k, here)
        top = scores.amax(-1, keepdim=True)
        weights = scores.softmax(-1)
        return weights, top.sub_(weights.amax(-1, keepdim=True).log_())

    def scores(self, q: Chunked, k: Float[Tensor, "x k d"], here: slice) -> BlockScores:
        scores = torch.bmm(q, k.mT).mul_(q.shape[-1] ** -0.5)
        if self.call.visibility.self_only_if_alone:
            itself(scores).fill_(ALONE)
        return scores.masked_fill_(self.hidden(here), HIDDEN)

    def hidden(self, here: slice) -> Bool[Tensor, "x c k"]:
        """Which keys a query does not see."""
        _, causal, last_n_only, _, count_duplicates = self.call.visibility
        hidden = ~near(self.labels, self.labels, here)
        if not count_duplicates:
            for queries, keys in list(zip(self.queries, self.keys, strict=True))[:-1]:
                hidden |= near(queries, keys, here)
        if causal:
            hidden |= self.position[here, :, None] < windows(self.position, here)[:, None]
        if last_n_only:
            row = torch.arange(self.size, device=hidden.device)[:, None]
            column = torch.arange(2 * self.size, device=hidden.device)
            hidden |= (column <= row) | (column > row + self.size)
        return hidden


def near(queries: Int[Tensor, "w c"], keys: Int[Tensor, "w c"], here: slice) -> Bool[Tensor, "x c k"]:
    """Where the difference of labels is 0 or 1."""
    label, other = queries[here, :, None], windows(keys, here)[:, None]
    return (label == other).logical_or_(label == other + 1)


def parts(call: BucketCall) -> Iterator[slice]:
    """Heads, as many at once as memory allows."""
    batch, heads, rounds, length = call.order.shape
    chunks = 1 + -(-length // call.visibility.size)
    return turns(batch * heads, rounds * chunks * numbers(call))


def numbers(call: BucketCall) -> int:
    """Those that a chunk asks for: scores, the weights made of them, and rows of q, k and v."""
    size = call.visibility.size
    return size * (4 * size + 2 * call.q.shape[3] + call.v.shape[3])
