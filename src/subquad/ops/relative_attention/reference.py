"""Relative attention in PyTorch's operators.

A block of one segment's queries stands beside the slices of keys that any of them sees; what is made of it
stays in cache.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.relative_attention import RelativeCall, RelativeGradients, Slots, Weights
from subquad.ops.relative_attention.positions import sinusoid, turn
from subquad.ops.shared.allocation import empty_result

BLOCK_QUERIES = 160  # queries at once, of one segment
MAX_SCORES = 2**18  # at once, at least a head's


def refuses(call: RelativeCall) -> None:
    """Nothing: any device, any floating dtype."""


def forward(call: RelativeCall) -> Tensor:
    q, v = call.q, call.slots.v
    scores, out = Scores(call), empty_result(v, *q.shape[:3], v.shape[3])
    if call.count.sum() < len(q) * q.shape[2]:
        out.zero_()
    for block in query_blocks(call):
        weights = scores.weigh(block, scores.prepare(block))
        out[block.row, block.heads, block.at] = torch.bmm(weights, block.take(v, call.slots.compressed_v))
    return out


def backward(grad: Tensor, call: RelativeCall, out: Tensor) -> RelativeGradients:
    q, scores, slots = call.q, Scores(call), call.slots
    dq = empty_result(q).zero_()
    du, dv, dW_R = weights = Weights(*map(torch.zeros_like, call.weights))
    dk, dv_slots = (empty_result(x).zero_() for x in slots[:2])
    compressed = (None if x is None else empty_result(x).zero_() for x in slots[2:])
    changes = Slots(dk, dv_slots, *compressed)
    for block in query_blocks(call):
        row, heads, at = block[:3]
        inputs, g = scores.prepare(block), grad[row, heads, at]
        p = scores.weigh(block, inputs)
        block.put(torch.bmm(p.mT, g), changes.v, changes.compressed_v)
        dp = torch.bmm(g, block.take(slots.v, slots.compressed_v).mT)
        dp.sub_((g * out[row, heads, at]).sum(-1, keepdim=True)).mul_(p)
        block.put(torch.bmm(dp.mT, inputs.content), changes.k, changes.compressed_k)
        by_content = torch.bmm(dp, inputs.keys).mul_(scores.scale)
        turned = (dp.flatten(0, 1) @ inputs.r).view_as(inputs.turned)
        turned = turn(turned, inputs.own)  # which is its own inverse
        by_place = torch.bmm(turned, scores.W[heads])
        own = q[row, heads, at] + scores.v[heads]
        dW_R[heads] += torch.bmm(turned.mT, own).mul_(scores.scale)
        du[heads] += by_content.sum(1)
        dv[heads] += by_place.sum(1)
        dq[row, heads, at] = by_content.add_(by_place)
    return RelativeGradients(dq, weights, changes)


def received(call: RelativeCall) -> Tensor:
    scores, out = Scores(call), call.q.new_zeros(call.slots.k.shape[:3])
    for block in query_blocks(call):
        out[block.row, block.heads, block.keys] += scores.weigh(block, scores.prepare(block)).sum(1)
    return out


class Block(NamedTuple):
    """Some queries of one segment of one row, in some heads, and the keys that any of them sees."""

    row: int
    heads: slice
    at: slice  # of the queries
    place: int  # of the first query
    start: int  # the place of the first key; the last is that of the last query
    keys: slice  # slots
    compressed: slice  # compressed slots

    def take(self, slots: Tensor, compressed: Tensor | None) -> Tensor:
        """The keys, or values."""
        taken = slots[self.row, self.heads, self.keys]
        if compressed is None or self.compressed.start == self.compressed.stop:
            return taken
        return torch.cat([compressed[self.row, self.heads, self.compressed], taken], 1)

    def put(self, x: Tensor, slots: Tensor, compressed: Tensor | None) -> None:
        """Add to each its part of the gradient `x`."""
        before = self.compressed.stop - self.compressed.start
        slots[self.row, self.heads, self.keys] += x[:, before:]
        if compressed is not None and before:
            compressed[self.row, self.heads, self.compressed] += x[:, :before]

    def mask_keys(self, scores: Tensor, later: Tensor, reach: int) -> None:
        """Those of `later` keys, and of what is out of reach."""
        rows = scores.shape[1]
        scores[..., -rows:] += later[:rows, :rows]
        beyond = self.place - reach - self.start  # the last key that the first query does not reach
        if (columns := beyond + rows) > 0:
            mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(beyond)
            scores[..., :columns].masked_fill_(mask, -torch.inf)


def query_blocks(call: RelativeCall) -> Iterator[Block]:
    heads, layout = call.q.shape[1], call.layout
    l, m = layout.size, layout.memory
    rows = (x.tolist() for x in (call.first, call.count, call.num_held))
    for row, counts in enumerate(zip(*rows, strict=True)):
        for n, (begin, queries, held) in enumerate(zip(*counts, strict=True)):
            step = -(-queries // max(1, -(-queries // BLOCK_QUERIES)))
            for a in range(0, queries, max(1, step)):
                place, stop = begin + a, begin + min(a + step, queries)
                start = max(-held, place - layout.reach + 1)
                zero = n * l + m - layout.missing  # the slot of place 0
                keys = slice(zero + max(start, -m), zero + stop)
                zero = n * layout.step + layout.compressed - layout.missing_compressed
                compressed = slice(zero + min(0, start + m), zero)
                group = max(1, MAX_SCORES // ((stop - place) * (stop - start)))
                at = slice(n * layout.queries + a, n * layout.queries + a + stop - place)
                for head in range(0, heads, group):
                    yield Block(row, slice(head, head + group), at, place, start, keys, compressed)


class BlockInputs(NamedTuple):
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

    def __init__(self, call: RelativeCall) -> None:
        q, (u, v, W_R), layout = call.q, call.weights, call.layout
        self.scale, self.first, self.reach = (
            q.shape[3] ** -0.5,
            -layout.memory - layout.compressed,
            layout.reach,
        )
        self.u, self.v, self.W = u[:, None], v[:, None], W_R * self.scale
        places = torch.arange(self.first, layout.size, device=q.device)
        self.r = sinusoid(places, W_R.shape[1], like=q)
        self.later = q.new_full((BLOCK_QUERIES, BLOCK_QUERIES), -torch.inf).triu(1)
        self.call = call

    def prepare(self, block: Block) -> BlockInputs:
        q, slots, heads = self.call.q[block.row, block.heads, block.at], self.call.slots, block.heads
        place, stop = block.place - self.first, block.place - self.first + q.shape[1]
        own, r = self.r[place:stop], self.r[block.start - self.first : stop]
        turned = turn(torch.bmm(q + self.v[heads], self.W[heads].mT), own)
        content = (q + self.u[heads]).mul_(self.scale)
        return BlockInputs(content, turned, block.take(slots.k, slots.compressed_k), r, own)

    def weigh(self, block: Block, inputs: BlockInputs) -> Float[Tensor, "h w s"]:
        scores = inputs.scores()
        block.mask_keys(scores, self.later, self.reach)
        return torch.softmax(scores, -1, out=scores)
