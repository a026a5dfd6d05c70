"""Random directions to project queries and keys on.

Rows that are orthogonal within blocks of d lower the variance of what is estimated with them. A block is a
Haar-random rotation times independent lengths: QR of a Gaussian matrix alone is not Haar, its signs must be
those of a decomposition with a positive diagonal of R; and the lengths follow the chi distribution with d
degrees of freedom, drawn apart from the directions, so that each row by itself is N(0, I). With all lengths
equal to sqrt(d), their root mean square, the estimate is of a regularised softmax kernel, SMREG.

Choromanski et al.: Rethinking Attention with Performers. ICLR 2021, arXiv:2009.14794, sections 2.4 and 3.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.features.feature_map import Features, Heads, Keys
from subquad.ops.linear_attention import FeatureKind, KernelInputs

LENGTHS = ("chi", "fixed")
Scaling = Literal["root", "unit", "none"]  # what x' is: x / d^(1/4), x / |x| or x
SMALLEST = 1e-6  # norm of a query or key that is still normalised, so that zero has a gradient

Rows = Float[Tensor, "rows width"]


class Projection(nn.Module):
    """x -> W x', with `rows` random rows as wide as a head.

    By default x' = x / d^(1/4), whose dot products are q . k / sqrt(d).
    """

    W: Float[Tensor, "f d"]

    def __init__(
        self,
        head_dim: int,
        *,
        rows: int,
        generator: torch.Generator,
        orthogonal: bool = True,
        lengths: str = "chi",
        scaling: Scaling = "root",
    ) -> None:
        super().__init__()
        self.orthogonal = orthogonal
        self.lengths = lengths
        self.scaling: Scaling = scaling
        self.register_buffer("W", torch.empty(rows, head_dim))
        self.redraw(generator=generator)

    def redraw(self, *, generator: torch.Generator) -> None:
        draw = orthogonal_gaussian if self.orthogonal else gaussian
        W = draw(*self.W.shape, generator=generator)
        if self.lengths == "fixed":
            W = W * (W.shape[1] ** 0.5 / W.norm(dim=1, keepdim=True))
        self.W.copy_(W)

    def scaled(self, x: Heads) -> Heads:
        return scaled(x, self.scaling)

    def forward(self, x: Heads) -> Features:
        return self.scaled(x) @ self.W.to(x.dtype).mT

    def prepare(self, q: Heads, k: Keys, W: Rows) -> KernelInputs:
        """What linear attention makes exp(W x' - |x'|^2 / 2) from, W being ours, or ours and more."""
        root = W.shape[1] ** 0.25
        if self.scaling == "unit":
            q, k = self.scaled(q) * root, self.scaled(k) * root
        return KernelInputs(q, k, FeatureKind.FAVOR, W.to(torch.promote_types(q.dtype, torch.float32)) / root)


class Unprojected(nn.Module):
    """x -> x', in the place of a projection."""

    def __init__(self, *, scaling: Scaling) -> None:
        super().__init__()
        self.scaling: Scaling = scaling

    def redraw(self, *, generator: torch.Generator) -> None:
        """Nothing is random."""

    def forward(self, x: Heads) -> Features:
        return scaled(x, self.scaling)


def scaled(x: Float[Tensor, "b h t d"], scaling: Scaling) -> Float[Tensor, "b h t d"]:
    """x'"""
    if scaling == "unit":
        return F.normalize(x, dim=-1, eps=SMALLEST)
    return x * x.shape[-1] ** -0.25 if scaling == "root" else x


def gaussian(rows: int, width: int, *, generator: torch.Generator) -> Rows:
    """Independent rows of N(0, I), in float64."""
    return torch.randn(rows, width, dtype=torch.float64, generator=generator)


def orthogonal_gaussian(rows: int, width: int, *, generator: torch.Generator) -> Rows:
    """Rows of N(0, I) that are orthogonal within each block of `width`, in float64."""
    directions = haar(-(-rows // width), width, generator=generator).flatten(0, 1)[:rows]
    return directions * gaussian(rows, width, generator=generator).norm(dim=1, keepdim=True)


def haar(count: int, width: int, *, generator: torch.Generator) -> Float[Tensor, "count width width"]:
    """Orthogonal matrices drawn evenly from all (Mezzadri 2007, arXiv:math-ph/0609050, section 5)."""
    Q, R = torch.linalg.qr(gaussian(count * width, width, generator=generator).unflatten(0, (count, width)))
    return Q * R.diagonal(dim1=1, dim2=2).sign()[:, None, :]
