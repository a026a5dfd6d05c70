"""A round's tokens in chunks, and the weights of a block of chunks.

Rows are gathered whole, and scores live in one block that stays in the cache.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.bucket_attention import Visibility
from subquad.ops.shared.waiting import may_wait

Chunked = Float[Tensor, "w c d"]
BlockScores = Float[Tensor, "x c k"]  # of a block of chunks

ALONE = -1e5  # the score of a token with itself, where it should see itself only if it sees no other
HIDDEN = -1e30  # the score of a key that is not seen
NOWHERE = -8  # the label of a free place; below it and above -2, labels are the caller's
MAX_TOKENS = 2048  # that are gathered at once, at least a head's
MAX_SCORES = 2**18  # that are in the cache at once, at least a chunk's


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """Some heads' tokens in one round's order, the chunks of all heads in a row, an empty one before each."""

    source: Int[Tensor, " s"]  # the token at each place, of all the heads' tokens
    free: Bool[Tensor, "w c 1"]  # places without a token
    labels: Int[Tensor, "r w c"]  # of the rounds before, and of this one
    position: Int[Tensor, "w c"]
    visibility: Visibility

    def take(self, x: Float[Tensor, "t d"], into: Chunked) -> Chunked:
        """Rows of `x` in this order, chunk by chunk."""
        torch.index_select(x, 0, self.source, out=into.flatten(0, 1))
        return into

    def blocks(self) -> Iterator[slice]:
        """Chunks in blocks, from the second."""
        chunks, c = self.position.shape
        step = max(1, MAX_SCORES // (2 * c * c))
        for start in range(1, chunks, step):
            yield slice(start, min(start + step, chunks))

    def weigh(self, q: Chunked, k: Chunked, here: slice) -> tuple[BlockScores, Float[Tensor, "x c 1"]]:
        """Weights within the round, and the logarithm of their sum before they were divided by it.

        The logarithm follows from the greatest weight, for torch's `exp` is slow where it underflows, and its
        softmax is not.
        """
        scores = torch.bmm(q[here], windows(k, here).mT).mul_(q.shape[-1] ** -0.5)
        if self.visibility.self_only_if_alone:
            itself(scores).fill_(ALONE)
        top = scores.masked_fill_(self.hidden(here), HIDDEN).amax(-1, keepdim=True)
        weights = torch.softmax(scores, -1, out=scores)
        return weights, top.sub_(weights.amax(-1, keepdim=True).log_())

    def hidden(self, here: slice) -> Bool[Tensor, "x c k"]:
        """Which keys a query does not see."""
        *earlier, own = self.labels
        hidden = apart(own, here) != 1
        if earlier and not self.visibility.count_duplicates:
            hidden |= reduce(torch.minimum, (apart(labels, here) for labels in earlier)) == 1
        if self.visibility.causal:
            hidden |= self.position[here, :, None] < windows(self.position, here)[:, None]
        if self.visibility.last_n_only:
            row, column = (torch.arange(size, device=hidden.device) for size in hidden.shape[1:])
            hidden |= (column <= row[:, None]) | (column > row[:, None] + len(row))
        return hidden


def apart(labels: Int[Tensor, "w c"], here: slice) -> Int[Tensor, "x c k"]:
    """An odd number, 1 where the difference of labels is 0 or 1."""
    return ((2 * labels[here] - 1)[..., None] - windows(2 * labels, here)[:, None]).abs_()


def windows(x: Tensor, here: slice) -> Tensor:
    """The chunks `here`, each with the one before it in front: a view."""
    c = x.shape[1]
    found = x[here.start - 1 : here.stop].flatten(0, 1).unfold(0, 2 * c, c)
    return found.mT if x.ndim == 3 else found


def itself(scores: BlockScores) -> Float[Tensor, "x c"]:
    """The score of each token with itself: a view."""
    return scores.diagonal(scores.shape[1], 1, 2)


def spread(x: Chunked, by: Float[Tensor, "x k d"], here: slice) -> None:
    """Add to `x` what the chunks `here` give to themselves and to the ones before them."""
    c = x.shape[1]
    x[here.start - 1 : here.stop - 1] += by[:, :c]
    x[here] += by[:, c:]


def slices(heads: int, length: int) -> Iterator[slice]:
    """Heads in slices."""
    step = max(1, MAX_TOKENS // length)
    for start in range(0, heads, step):
        yield slice(start, min(start + step, heads))


def rounds(order: Int[Tensor, "g r n"], labels: Int[Tensor, "g r n"], visibility: Visibility) -> list[Round]:
    """The rounds of some heads."""
    heads, count, length = order.shape
    size, chunks = visibility.size, 1 + -(-length // visibility.size)
    places = order[..., :1].expand(-1, -1, chunks * size).clone()  # free places repeat a token of the row
    places[..., size : size + length] = order
    first = length * torch.arange(heads, device=order.device)[:, None]
    free = torch.ones(heads, chunks * size, dtype=torch.bool, device=order.device)
    free[:, size : size + length] = False
    if labels.is_cpu and may_wait(labels) and 2 * labels.amax() < torch.iinfo(torch.int16).max + 2 * NOWHERE:
        labels = labels.to(torch.int16)  # compared in half the time
    labels, free = labels.transpose(0, 1).flatten(1), free.flatten()
    found = []
    for number in range(count):
        source = (places[:, number] + first).flatten()
        here = labels[: number + 1].index_select(1, source).masked_fill_(free, NOWHERE)
        found.append(
            Round(
                source=source,
                free=free.view(-1, size, 1),
                labels=here.unflatten(1, (-1, size)),
                position=places[:, number].to(torch.int32).view(-1, size),
                visibility=visibility,
            )
        )
    return found


def places(order: Int[Tensor, "g r n"], size: int) -> Int[Tensor, "gn r"]:
    """Where each token stands in each round's chunks, counted through all rounds."""
    heads, count, length = order.shape
    chunks = 1 + -(-length // size)
    arange = torch.arange(max(heads, count, length), device=order.device)
    within = torch.empty_like(order).scatter_(2, order, arange[:length].expand_as(order)) + size
    before = arange[:heads, None] + heads * arange[:count]  # parts of a round, a head each
    return (within + chunks * size * before[..., None]).mT.flatten(0, 1)


def buffers(like: Tensor, round: Round, inputs: Iterable[Tensor]) -> list[Tensor]:
    """Memory for the chunks of each input."""
    return [like.new_empty(*round.position.shape, x.shape[-1]) for x in inputs]
