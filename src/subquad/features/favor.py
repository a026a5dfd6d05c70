"""FAVOR+: positive random features whose dot product is the softmax kernel on average.

    phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(f),    x' = x / d^(1/4),    rows of W ~ N(0, I), f x d
    E[phi(q) . phi(k)] = exp(q . k / sqrt(d))

Rows of W that are orthogonal within blocks of d lower the variance. A block is a Haar-random rotation
times independent lengths: QR of a Gaussian matrix alone is not Haar, its signs must be those of a
decomposition with a positive diagonal of R; and the lengths follow the chi distribution with d degrees of
freedom, drawn apart from the directions, so that each row by itself is N(0, I).

Choromanski et al.: Rethinking Attention with Performers. ICLR 2021, arXiv:2009.14794, sections 2.3, 2.4.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.features.feature_map import ExponentialFeatureMap, Features, Heads


class Favor(ExponentialFeatureMap):
    """Positive features, `features` of them, for heads of width `head_dim`."""

    W: Float[Tensor, "f d"]

    def __init__(self, head_dim: int, *, features: int, seed: int, orthogonal: bool) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be at least 1, not {features!r}")
        self.orthogonal = orthogonal
        self.register_buffer("W", torch.empty(features, head_dim))
        self.redraw(generator=torch.Generator().manual_seed(seed))

    def redraw(self, *, generator: torch.Generator) -> None:
        draw = orthogonal_gaussian if self.orthogonal else gaussian
        self.W.copy_(draw(*self.W.shape, generator=generator))

    def forward(self, x: Heads) -> Features:
        x = x * x.shape[-1] ** -0.25
        return (x @ self.W.mT - x.square().sum(-1, keepdim=True) / 2).exp() / len(self.W) ** 0.5

    def log_queries(self, q: Heads) -> Features:
        return q @ (self.W.to(q.dtype).mT * q.shape[-1] ** -0.25)

    def log_keys(self, k: Heads) -> Features:
        return self.log_queries(k) - k.square().sum(-1, keepdim=True) * (k.shape[-1] ** -0.5 / 2)


def gaussian(rows: int, width: int, *, generator: torch.Generator) -> Float[Tensor, "rows width"]:
    """Independent rows of N(0, I), in float64."""
    return torch.randn(rows, width, dtype=torch.float64, generator=generator)


def orthogonal_gaussian(rows: int, width: int, *, generator: torch.Generator) -> Float[Tensor, "rows width"]:
    """Rows of N(0, I) that are orthogonal within each block of `width`, in float64."""
    directions = haar(-(-rows // width), width, generator=generator).flatten(0, 1)[:rows]
    return directions * gaussian(rows, width, generator=generator).norm(dim=1, keepdim=True)


def haar(count: int, width: int, *, generator: torch.Generator) -> Float[Tensor, "count width width"]:
    """Orthogonal matrices drawn evenly from all (Mezzadri 2007, arXiv:math-ph/0609050, section 5)."""
    Q, R = torch.linalg.qr(gaussian(count * width, width, generator=generator).unflatten(0, (count, width)))
    return Q * R.diagonal(dim1=1, dim2=2).sign()[:, None, :]
