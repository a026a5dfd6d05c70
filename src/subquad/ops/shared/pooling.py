"""Pooling along a sequence: windows of packed tokens, one every `stride` tokens, and what sums them up.

The last windows of a row are cut where its tokens end, and a window without a token is not real.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.shared.masked_softmax import masked_softmax
from subquad.ops.shared.transforms import several

Pooled = Float[Tensor, "b h p d"]


class Windows(NamedTuple):
    """Tokens by window; zeros where a window has none."""

    tokens: Float[Tensor, "b h p w d"]
    inside: Bool[Tensor, "b p w"]

    @classmethod
    def of(
        cls, x: Float[Tensor, "b h s d"], count: Int[Tensor, " b"], *, kernel: int, stride: int
    ) -> "Windows":
        """The windows of `kernel` tokens of each row's first `count`; `kernel` is no less than `stride`."""
        length = x.shape[2]
        windows = several(-(-length // stride))
        x = F.pad(x, (0, 0, 0, (windows - 1) * stride + kernel - length))
        first = stride * torch.arange(windows, device=x.device)
        inside = first[:, None] + torch.arange(kernel, device=x.device) < count[:, None, None]
        tokens = x.unfold(2, kernel, stride).mT.masked_fill(~inside[:, None, ..., None], 0)
        return cls(tokens, inside)

    @property
    def real(self) -> Bool[Tensor, "b p"]:
        """Which windows hold a token; it would be their first."""
        return self.inside[..., 0]

    def mean(self) -> Pooled:
        return self.tokens.sum(3) / self.inside.sum(2).clamp(min=1)[:, None, :, None]

    def max(self) -> Pooled:
        """The greatest of each component; zero in an empty window."""
        lowest = torch.finfo(self.tokens.dtype).min
        greatest = self.tokens.masked_fill(~self.inside[:, None, ..., None], lowest).amax(3)
        return greatest.masked_fill(~self.real[:, None, :, None], 0)

    def weighted(self, logits: Float[Tensor, "b h p w"]) -> Pooled:
        """Averages with the softmax of `logits` over each window's tokens as weights."""
        weights = masked_softmax(logits, seen=self.inside[:, None])
        return (weights[..., None, :] @ self.tokens).squeeze(3)
