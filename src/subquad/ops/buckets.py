"""Tokens sorted by bucket and cut into chunks: attention within buckets becomes attention to neighbours.

Buckets differ in size, and a batch of them is no tensor. Sorted by (bucket, position), the tokens of a bucket
stand side by side; chunks of one size, each attending to itself and to the chunk before it, then reach the
tokens of the same bucket up to a chunk's length back. What else they reach, a mask takes out.

    buckets  1 0 1 0 0 1     sorted  1 3 4 | 0 2 5      (chunks of 3 tokens)

Kitaev, Kaiser, Levskaya: Reformer. ICLR 2020, arXiv:2001.04451, section 2 and figure 2.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Buckets:
    """The order of the tokens by bucket, and the size of the chunks that it is cut into."""

    size: int
    order: Int[Tensor, "b h n"]  # the token at each place; tokens of one bucket keep their order
    place: Int[Tensor, "b h n"]  # of each token

    @classmethod
    def of(cls, bucket: Int[Tensor, "b h n"], *, size: int) -> "Buckets":
        """Sort by `bucket`. Chunks have `size` tokens, or one chunk has them all if they are fewer."""
        order = bucket.argsort(dim=-1, stable=True)
        places = torch.arange(bucket.shape[-1], device=bucket.device).expand_as(order)
        place = torch.empty_like(order).scatter(-1, order, places)
        return cls(size=min(size, max(1, bucket.shape[-1])), order=order, place=place)

    @property
    def count(self) -> int:
        """Chunks, the last of which may have free places."""
        return max(1, -(-self.order.shape[-1] // self.size))

    def chunk(self, x: Shaped[Tensor, "b h n *e"], *, fill: float = 0) -> Shaped[Tensor, "b h m c *e"]:
        """`x` in the sorted order, chunk by chunk, with `fill` in the free places."""
        x = reorder(x, self.order)
        free = self.count * self.size - x.shape[2]
        x = torch.cat([x, x.new_full((*x.shape[:2], free, *x.shape[3:]), fill)], 2)
        return x.unflatten(2, (self.count, self.size))

    def unchunk(self, y: Shaped[Tensor, "b h m c *e"]) -> Shaped[Tensor, "b h n *e"]:
        """What belongs to each token, back at the token's place."""
        return reorder(y.flatten(2, 3), self.place)


def look_back(x: Shaped[Tensor, "b h m c *e"], *, fill: float = 0) -> Shaped[Tensor, "b h m c2 *e"]:
    """Each chunk with the one before it in front; `fill` stands before the first, which has none."""
    before = torch.cat([torch.full_like(x[:, :, :1], fill), x[:, :, :-1]], 2)
    return torch.cat([before, x], 3)


def reorder(x: Shaped[Tensor, "b h s *e"], source: Int[Tensor, "b h n"]) -> Shaped[Tensor, "b h n *e"]:
    """`x` at the places `source` of the third axis."""
    index = source.reshape(*source.shape, *(1 for _ in x.shape[3:]))
    return x.gather(2, index.expand(*source.shape, *x.shape[3:]))
