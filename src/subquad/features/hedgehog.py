"""Hedgehog's learnt features: exponentials of a linear map and of its negative.

    phi(x) = [exp(x W + b), exp(-(x W + b))],    W from the identity, b from zero, one of each per head

    phi(q) . phi(k) = 2 sum_f cosh(y_f(q) + y_f(k)),    y(x) = x W + b

Like softmax, and unlike elu + 1, exponentials make weights spiky. The authors' code divides phi by the sum of
its features, which cancels for queries and takes the norm of a key out of its weight. LoLCATs, by some of
them, divides each half of phi by its own sum, [softmax(y), softmax(-y)], which cancels for neither.

Zhang, Bhatia, Kumbong, Re: The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry.
ICLR 2024, arXiv:2402.04347, section 4. Zhang et al.: LoLCATs: On Low-Rank Linearizing of Large Language
Models. ICLR 2025, arXiv:2410.10254.
"""

import torch
from torch import nn

from subquad.features.feature_map import ExponentialFeatureMap, Features, Heads


class Hedgehog(ExponentialFeatureMap):
    """For `heads` heads of width `head_dim`; features sum to one if `normalise`, each half if `halves`."""

    def __init__(self, heads: int, head_dim: int, *, normalise: bool, halves: bool) -> None:
        super().__init__()
        self.normalise, self.halves = normalise, halves
        self.W = nn.Parameter(torch.eye(head_dim).repeat(heads, 1, 1))
        self.b = nn.Parameter(torch.zeros(heads, 1, head_dim))

    def forward(self, x: Heads) -> Features:
        y = self._mapped(x)
        if self.halves:
            return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1)
        phi = torch.cat([y, -y], -1).exp()
        return phi / phi.sum(-1, keepdim=True) if self.normalise else phi

    def log_queries(self, q: Heads) -> Features:
        y = self._mapped(q)
        both = torch.stack([y, -y], -2)
        return (both.log_softmax(-1) if self.halves else both).flatten(-2)

    def log_keys(self, k: Heads) -> Features:
        log_phi = self.log_queries(k)
        return log_phi.log_softmax(-1) if self.normalise else log_phi

    def _mapped(self, x: Heads) -> Heads:
        return x @ self.W.to(x.dtype) + self.b.to(x.dtype)
