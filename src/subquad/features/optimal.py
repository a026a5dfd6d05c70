"""FAVOR++: positive random features with a parameter that makes their variance least.

    phi(x) = D exp(A |w|^2 + B w . x' + C |x'|^2) / sqrt(f)  for each row w of W ~ N(0, I), f x d
    B = sqrt(1 - 4 A),    C = -1/2,    D = (1 - 4 A)^(d/4),    x' = x / d^(1/4)

E[phi(q) . phi(k)] = exp(q . k / sqrt(d)) whatever A < 1/8, and A = 0 is FAVOR+. An A below zero holds back
the long directions: features are bounded. With rho = 1 / (1 - 8 A) and L = |q' + k'|^2, the second moment is

    E[(phi(q) . phi(k))^2] ~ ((rho + 1) / 2)^d rho^(-d/2) exp((rho + 1) L)        (one feature, up to q and k)

and least where 2 L rho^2 + (2 L + d) rho - d = 0, which is

    rho = 2 d / (u + sqrt(u^2 + 8 d L)),    u = 2 L + d

Likhosherstov et al.: Chefs' Random Tables: Non-Trigonometric Random Features. NeurIPS 2022, arXiv:2205.15317,
section 3, where L is an average over pairs.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.features.directions import Projection
from subquad.features.feature_map import ExponentialFeatureMap, Features, Heads

PerHead = Float[Tensor, "h 1 1"]


class OptimalFavor(ExponentialFeatureMap):
    """One feature to a row of the projection, best for `heads` heads where |q + k|^2 is `spread` d."""

    spread: PerHead

    def __init__(self, heads: int, *, project: Projection, spread: float) -> None:
        super().__init__()
        self.project = project
        self.register_buffer("spread", torch.full((heads, 1, 1), float(spread)))

    def redraw(self, *, generator: torch.Generator) -> None:
        self.project.redraw(generator=generator)

    def forward(self, x: Heads) -> Features:
        d, W = x.shape[-1], self.project.W
        A, x = optimal(self.spread, d), x * d**-0.25
        B, C, D = (1 - 4 * A).sqrt(), -1 / 2, (1 - 4 * A) ** (d / 4)
        exponent = A * W.square().sum(-1) + B * (x @ W.mT) + C * x.square().sum(-1, keepdim=True)
        return D * exponent.exp() / len(W) ** 0.5

    def log_queries(self, q: Heads) -> Features:
        d = q.shape[-1]
        A, W = optimal(self.spread.to(q.dtype), d), self.project.W.to(q.dtype)
        return q @ (d**-0.25 * (1 - 4 * A).sqrt() * W.mT) + A * W.square().sum(-1)

    def log_keys(self, k: Heads) -> Features:
        return self.log_queries(k) - k.square().sum(-1, keepdim=True) * (k.shape[-1] ** -0.5 / 2)


def optimal(spread: PerHead, d: int) -> PerHead:
    """The A of least variance where |q + k|^2 is `spread` d, and so |q' + k'|^2 is `spread` sqrt(d)."""
    L = spread * d**0.5
    u = 2 * L + d
    return (1 - (u + (u.square() + 8 * d * L).sqrt()) / (2 * d)) / 8
