"""A shard between the edges of its neighbours, for attention that reaches so many real tokens and no further.

Each rank sends the last real tokens of its shard to those behind it, and where attention is bidirectional the
first ones to those before it: to one neighbour, or to several where a window is wider than a shard. Between
what it got from them, its own tokens see what they would see in the whole sequence, if all that counts is how
many real tokens lie between two.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.shared.packing import Packing, take
from subquad.shards import Shards

Edge = tuple[Tensor, Tensor]  # (b h n d+e) and (b n): keys beside values, and which are real


class Neighbourhood(NamedTuple):
    """Keys and values of a shard, with those of its neighbours on both sides."""

    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s e"]
    valid: Bool[Tensor, "b s"] | None  # None: all are real
    first: int  # where one's own begin
    length: int  # how many they are

    @classmethod
    def of(
        cls,
        k: Float[Tensor, "b h s d"],
        v: Float[Tensor, "b h s e"],
        valid: Bool[Tensor, "b s"] | None,
        *,
        before: int,
        behind: bool,
        shards: Shards,
    ) -> "Neighbourhood":
        """With the `before` real tokens before the shard; and, if `behind`, as many behind it."""
        own, size = torch.cat([k, v], -1), min(before, max(shards.lengths))
        packing = Packing.of(valid, like=own)
        packed = packing.pack(own)
        j = torch.arange(size, device=k.device)
        edges: list[Edge] = []
        hops = hops_needed(shards.real, before, behind=behind)
        if hops:
            places = packing.count[:, None] + j
            last = take(F.pad(packed, (0, 0, size, 0)), places, real=torch.ones_like(places).bool())
            edges += [received(shards, last, by, j) for by in range(hops, 0, -1)]
        first = sum(edge.shape[2] for edge, _ in edges)
        real = torch.ones(own.shape[0], own.shape[2], dtype=torch.bool, device=k.device)
        edges.append((own, real if valid is None else valid))
        if hops and behind:
            start = F.pad(packed, (0, 0, 0, size))[:, :, :size]
            edges += [received(shards, start, -by, j) for by in range(1, hops + 1)]
        return cls.join(edges, width=k.shape[-1], first=first, length=own.shape[2])

    @classmethod
    def join(cls, edges: list[Edge], *, width: int, first: int, length: int) -> "Neighbourhood":
        keyed, real = torch.cat([edge for edge, _ in edges], 2), torch.cat([real for _, real in edges], 1)
        k, v = keyed[..., :width], keyed[..., width:]
        return cls(k, v, None if bool(real.all()) else real, first, length)

    def with_first(
        self,
        k: Float[Tensor, "b h s d"],
        v: Float[Tensor, "b h s e"],
        valid: Bool[Tensor, "b s"] | None,
        *,
        count: int,
        shards: Shards,
    ) -> "Neighbourhood":
        """And with those of the first `count` real tokens of the whole sequence that are not there yet."""
        own = torch.cat([k, v], -1)
        start = F.pad(Packing.of(valid, like=own).pack(own), (0, 0, 0, count))[:, :, :count]
        every = shards.gather(start)
        here = self.valid if self.valid is not None else torch.ones_like(self.k[:, 0, :, 0]).bool()
        nearest = shards.before - here[:, : self.first].sum(1)  # how many come before those that are there
        j, edges = torch.arange(count, device=k.device), []
        for rank in range(shards.rank + 1):  # its own are none of them, but keep the gradient on every rank
            place = shards.counts[:rank].sum(0)[:, None] + j
            real = (j < shards.counts[rank][:, None]) & (place < nearest.clamp(max=count)[:, None])
            edges.append((every[rank], real))
        first = self.first + count * len(edges)
        edges.append((torch.cat([self.k, self.v], -1), here))
        return self.join(edges, width=k.shape[-1], first=first, length=self.length)

    def queries(self, q: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h s d"]:
        """The shard's, with zeros for those of neighbours."""
        return F.pad(q, (0, 0, self.first, self.k.shape[2] - self.first - self.length))

    def own(self, out: Float[Tensor, "b h s e"]) -> Float[Tensor, "b h t e"]:
        """The outputs of the shard's tokens."""
        return out[:, :, self.first : self.first + self.length]


def hops_needed(counts: list[list[int]], reach: int, *, behind: bool) -> int:
    """How many neighbours before a shard, or on either side, hold the `reach` real tokens next to it."""
    needed = 0
    for row in zip(*counts, strict=True):
        for side in (row, row[::-1]) if behind else (row,):
            for rank in range(len(side)):
                there, hops = 0, 0
                while there < reach and hops < rank and sum(side[: rank - hops]):
                    hops += 1
                    there += side[rank - hops]
                needed = max(needed, hops)
    return needed


def received(shards: Shards, edge: Float[Tensor, "b h w _"], by: int, j: Int[Tensor, " w"]) -> Edge:
    """What the rank at that distance sent, and which of its places, numbered `j`, hold real tokens.

    Those of a rank before this one are its last, and stand on the right; of one behind it, on the left.
    """
    keyed, rank = shards.shift(edge, by), shards.rank - by
    if not 0 <= rank < len(shards.lengths):
        none = torch.zeros(len(keyed), 0, dtype=torch.bool, device=keyed.device)
        return keyed[:, :, :0], none  # whose gradient leads to the exchange, as on all ranks
    count = shards.counts[rank][:, None]
    return keyed, (j >= len(j) - count) if by > 0 else (j < count)
