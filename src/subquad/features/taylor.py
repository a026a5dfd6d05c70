"""The first three terms of the exponential's Taylor series, as features.

    phi(x) = [1, x', x' (x) x' / sqrt(2)],    x' = x / d^(1/4)
    phi(q) . phi(k) = 1 + s + s^2 / 2,        s = q . k / sqrt(d)

The outer product is symmetric, so that only its half is kept: the diagonal as it is, and after it each pair
above it once, times sqrt(2). That makes (d + 1)(d + 2) / 2 features of the same dot product.

Arora et al.: Simple linear attention language models balance the recall-throughput tradeoff. ICML 2024,
arXiv:2402.18668, section 4.1.
"""

import torch

from subquad.features.feature_map import FeatureMap, Features, Heads


class Taylor(FeatureMap):
    """For queries and keys that are `width` wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Heads) -> Features:
        x = x * self.width**-0.25
        i, j = torch.triu_indices(self.width, self.width, 1, device=x.device)
        pairs = x.index_select(-1, i) * x.index_select(-1, j)
        return torch.cat([torch.ones_like(x[..., :1]), x, x * x * 0.5**0.5, pairs], -1)
