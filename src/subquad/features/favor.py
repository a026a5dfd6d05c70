"""FAVOR and FAVOR+: random features whose dot product is the softmax kernel on average.

    E[phi(q) . phi(k)] = exp(q' . k'),    x' = x / d^(1/4),    rows of W ~ N(0, I)

    positive         phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(f)                              W is f x d
    hyperbolic       phi(x) = [exp(W x'), exp(-W x')] exp(-|x'|^2 / 2) / sqrt(f)            f/2 x d
    trigonometric    phi(x) = [sin(W x'), cos(W x')] exp(|x'|^2 / 2) / sqrt(f/2)            f/2 x d

Their errors differ. With m rows of W, independent ones, and z = q' + k' (Lemma 2 of the paper),

    MSE(positive)      = exp(|z|^2) exp(q' . k')^2 (1 - exp(-|z|^2)) / m
    MSE(hyperbolic)    = MSE(positive) (1 - exp(-|z|^2)) / 2
    MSE(trigonometric) = exp(|z|^2) exp(q' . k')^-2 (1 - exp(-|q' - k'|^2))^2 / 2m

so that the trigonometric estimate is best where keys are like queries, and worst by far where the kernel is
small, as most weights of attention are; there its sign may be wrong too.

Choromanski et al.: Rethinking Attention with Performers. ICLR 2021, arXiv:2009.14794, sections 2.3, 2.4.
"""

from abc import ABC

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.features.directions import Projection, gaussian, orthogonal_gaussian
from subquad.features.feature_map import ExponentialFeatureMap, Features, Heads, Keys
from subquad.ops.linear_attention import KernelInputs

__all__ = ["Favor", "Hyperbolic", "RandomExponentials", "Trigonometric", "gaussian", "orthogonal_gaussian"]


class RandomExponentials(ExponentialFeatureMap, ABC):
    """Features made of W x' with a random W."""

    def __init__(self, project: Projection) -> None:
        super().__init__()
        self.project = project

    def redraw(self, *, generator: torch.Generator) -> None:
        self.project.redraw(generator=generator)


class Favor(RandomExponentials):
    """FAVOR+: positive features, one a row of W."""

    @property
    def fused(self) -> bool:
        return self.project.scaling != "unit"

    def forward(self, x: Heads) -> Features:
        x, W = self.project.scaled(x), self.project.W
        return (x @ W.mT - x.square().sum(-1, keepdim=True) / 2).exp() / len(W) ** 0.5

    def prepare(self, q: Heads, k: Keys) -> KernelInputs:
        return self.project.prepare(q, k, self.project.W)

    def log_queries(self, q: Heads) -> Features:
        return self.project(q)

    def log_keys(self, k: Heads) -> Features:
        return self.log_queries(k) - half_square(self.project.scaled(k))


class Hyperbolic(RandomExponentials):
    """Positive features for W and for -W: two a row of W."""

    @property
    def fused(self) -> bool:
        return self.project.scaling != "unit"

    def forward(self, x: Heads) -> Features:
        x, W = self.project.scaled(x), self.project.W
        u, shrink = x @ W.mT, (-x.square().sum(-1, keepdim=True) / 2).exp()
        return torch.cat([u.exp(), (-u).exp()], -1) * shrink / (2 * len(W)) ** 0.5

    def prepare(self, q: Heads, k: Keys) -> KernelInputs:
        return self.project.prepare(q, k, torch.cat([self.project.W, -self.project.W]))

    def log_queries(self, q: Heads) -> Features:
        u = self.project(q)
        return torch.cat([u, -u], -1)

    def log_keys(self, k: Heads) -> Features:
        return self.log_queries(k) - half_square(self.project.scaled(k))


class Trigonometric(RandomExponentials):
    """FAVOR's sines and cosines, one of each a row of W, whose weights may be negative."""

    signed = True

    def forward(self, x: Heads) -> Features:
        x, W = self.project.scaled(x), self.project.W
        u, grow = x @ W.mT, (x.square().sum(-1, keepdim=True) / 2).exp()
        return torch.cat([u.sin(), u.cos()], -1) * grow / len(W) ** 0.5

    def amplitude(self, x: Heads) -> Features:
        u = self.project(x)
        return torch.cat([u.sin(), u.cos()], -1)

    def log_queries(self, q: Heads) -> Float[Tensor, "b h t 1"]:
        return torch.zeros_like(q[..., :1])

    def log_keys(self, k: Heads) -> Float[Tensor, "b h t 1"]:
        return half_square(self.project.scaled(k))


def half_square(x: Heads) -> Float[Tensor, "b h t 1"]:
    return x.square().sum(-1, keepdim=True) / 2
