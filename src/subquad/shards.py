"""A sequence that several processes share: each rank holds a shard, a contiguous part of its tokens.

Ranks hold the shards in their own order. What a rank knows of the others is how many tokens each has; what it
gets from them it asks for by `gather` or `shift`, through which gradients flow: that of a tensor is the sum
over what all ranks made of it. Every rank has to ask for the same in the same order, forward and back.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class Shards(ABC):
    """The shards of a batch of sequences, as one of the ranks sees them.

    rank: its own, from 0.
    counts: real tokens of each row, by rank.
    lengths: tokens of a row, padding included, by rank.
    """

    def __init__(self, rank: int, counts: Int[Tensor, "ranks b"], lengths: Sequence[int]) -> None:
        self.rank, self.counts, self.lengths = rank, counts, tuple(lengths)

    @property
    def before(self) -> Int[Tensor, " b"]:
        """Real tokens of each row on the ranks before this one."""
        return self.counts[: self.rank].sum(0)

    @property
    def total(self) -> Int[Tensor, " b"]:
        """Real tokens of each row on all ranks."""
        return self.counts.sum(0)

    @cached_property
    def real(self) -> list[list[int]]:
        """`counts`, as plain numbers."""
        return self.counts.tolist()

    @abstractmethod
    def gather(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "ranks ..."]:
        """The tensors of all ranks, which are of one shape and dtype."""

    @abstractmethod
    def shift(self, x: Float[Tensor, "*shape"], by: int) -> Float[Tensor, "*shape"]:
        """The tensor of the rank that is `by` before this one, or behind it if negative; zeros of none."""

    def gather_tokens(
        self, x: Float[Tensor, "b h t c"], valid: Bool[Tensor, "b t"] | None
    ) -> tuple[Float[Tensor, "b h s c"], Bool[Tensor, "b s"] | None]:
        """The tokens of all ranks side by side, and which of them are real; None: all are."""
        missing = max(self.lengths) - x.shape[2]
        every = self.gather(F.pad(x, (0, 0, 0, missing)))
        tokens = every.movedim(0, 2).flatten(2, 3)
        if all(count == max(self.lengths) for counts in self.real for count in counts):
            return tokens, None
        real = torch.ones_like(x[:, 0, :, 0]) if valid is None else valid.to(x.dtype)
        mask = self.gather(F.pad(real, (0, missing)))
        return tokens, mask.movedim(0, 1).flatten(1).bool()
