"""Generalised attention: random features of other kernels than softmax's.

    phi(x) = f(W x') + epsilon,    x' = x / d^(1/4),    rows of W ~ N(0, I), f x d
    phi(x) = f(x) + epsilon                             without projection and scale

Each f is a kernel of its own, E[f(w . q') f(w . k')]: that of relu is the arc-cosine kernel of degree one,
that of exp is exp(|q' + k'|^2 / 2), softmax's times a factor that favours long keys. None of them tends to
softmax attention, and epsilon, added to every feature, keeps a query from seeing no key at all.

Choromanski et al.: Rethinking Attention with Performers. ICLR 2021, arXiv:2009.14794, section 2.2. f and
epsilon = 0.001 are those of the authors' JAX code, which by default projects nothing, and never scales: with
relu that is the Performer of the Long Range Arena (arXiv:2011.04006). Left out are relu^2 and those of its
functions whose weights change sign throughout: sin, cos, tanh and the identity.
"""

import math
from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.features.directions import Projection, Unprojected
from subquad.features.feature_map import ExponentialFeatureMap, FeatureMap, Features, Heads


def positive_elu(u: Tensor) -> Tensor:
    return F.elu(u) + 1


FUNCTIONS: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "relu": F.relu,
        "abs": torch.abs,
        "elu": positive_elu,
        "gelu": F.gelu,  # down to -0.17: its weights may be negative
        "sigmoid": torch.sigmoid,
    }
)


class Generalised(FeatureMap):
    """Features `f` of a projection, or of queries and keys themselves."""

    def __init__(
        self, project: Projection | Unprojected, *, f: Callable[[Tensor], Tensor], epsilon: float
    ) -> None:
        super().__init__()
        self.project = project
        self.f = f
        self.epsilon = epsilon

    def redraw(self, *, generator: torch.Generator) -> None:
        self.project.redraw(generator=generator)

    def forward(self, x: Heads) -> Features:
        return self.f(self.project(x)) + self.epsilon


class GeneralisedExponential(ExponentialFeatureMap):
    """The same with f = exp, in log space."""

    def __init__(self, project: Projection | Unprojected, *, epsilon: float) -> None:
        super().__init__()
        self.project = project
        self.epsilon = epsilon

    def redraw(self, *, generator: torch.Generator) -> None:
        self.project.redraw(generator=generator)

    def forward(self, x: Heads) -> Features:
        return self.project(x).exp() + self.epsilon

    def log_queries(self, q: Heads) -> Features:
        u = self.project(q)
        return torch.logaddexp(u, torch.full_like(u, math.log(self.epsilon)))

    def log_keys(self, k: Heads) -> Features:
        return self.log_queries(k)
