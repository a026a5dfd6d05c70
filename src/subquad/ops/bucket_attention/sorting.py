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
    order: Int[Tensor, "b h r n"]  # the token at each place; tokens of one bucket keep their order
    place: Int[Tensor, "b h r n"]  # of each token

    @classmethod
    def of(cls, bucket: Int[Tensor, "b h r n"], *, size: int) -> "Buckets":
        """Sort by `bucket`, each round by itself. Chunks have `size` tokens, the last what is left.

        The numbers of buckets must fit into 32 bits.
        """
        order = bucket.to(torch.int32).argsort(dim=-1, stable=True)
        places = torch.arange(bucket.shape[-1], device=bucket.device).expand_as(order)
        place = torch.empty_like(order).scatter(-1, order, places)
        return cls(size=size, order=order, place=place)


def reorder(x: Shaped[Tensor, "b h s *e"], source: Int[Tensor, "b h n"]) -> Shaped[Tensor, "b h n *e"]:
    """`x` at the places `source` of the third axis, taken by whole rows."""
    first = x.shape[2] * torch.arange(x.shape[0] * x.shape[1], device=x.device)
    places = (source.flatten(0, 1) + first[:, None]).flatten()
    return x.flatten(0, 2).index_select(0, places).view(*source.shape, *x.shape[3:])
