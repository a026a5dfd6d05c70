"""The norm behind a convolution, of real tokens only."""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.bounds import one_of
from subquad.mechanism import Valid
from subquad.nn.positions import HiddenStates

Norm = Annotated[str, one_of("layer", "batch")]


class TokenNorm(nn.LayerNorm):
    """Each token by itself, whatever else there is: `norm(x, valid)`."""

    def forward(self, x: HiddenStates, valid: Valid | None) -> HiddenStates:
        return super().forward(x)


class RealBatchNorm(nn.BatchNorm1d):
    """Batch norm over the real tokens of all rows: `norm(x, valid)`.

    That of torch would count padding, so that what a token comes out as hung on how full its batch was. A
    batch without a real token teaches the running statistics nothing. Each process has statistics of its own
    rows.
    """

    running_mean: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    running_var: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    num_batches_tracked: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    momentum: float  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(self, x: HiddenStates, valid: Valid | None) -> HiddenStates:
        if self.training:
            mean, variance = self._statistics(x, valid)
        else:
            mean, variance = self.running_mean, self.running_var
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normal = (wide - mean) * (variance + self.eps).rsqrt()
        return (normal * self.weight + self.bias).to(x.dtype)

    def _statistics(
        self, x: HiddenStates, valid: Valid | None
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        real = torch.ones_like(wide[..., :1]) if valid is None else valid[..., None].to(wide.dtype)
        count = real.sum()
        mean = torch.where(real > 0, wide, 0).sum((0, 1)) / count.clamp(min=1)
        variance = torch.where(real > 0, wide - mean, 0).square().sum((0, 1)) / count.clamp(min=1)
        with torch.no_grad():
            share = self.momentum * (count > 0)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share.to(self.running_mean.dtype))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share.to(self.running_var.dtype))
            self.num_batches_tracked.add_(1)
        return mean, variance


def norm_after_convolution(kind: str, dim: int) -> TokenNorm | RealBatchNorm:
    """That of a kind of `Norm`, for tokens of width `dim`."""
    return RealBatchNorm(dim) if kind == "batch" else TokenNorm(dim)
