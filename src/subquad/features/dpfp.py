"""DPFP: a deterministic, parameter-free projection whose features are products of neighbours.

    phi(x) = [r_i r_(i+j)  for j = 1 .. nu, i = 1 .. 2 d],    r = [relu(x), relu(-x)],    i + j modulo 2 d

A product is above zero in one region of space only, so that features are sparse and keys in different
regions orthogonal, at 2 d nu features instead of the d^2 of an outer product.

Schlag, Irie, Schmidhuber: Linear Transformers Are Secretly Fast Weight Programmers. ICML 2021,
arXiv:2102.11174, section 5.3.
"""

import torch

from subquad.features.feature_map import FeatureMap, Features, Heads


class Dpfp(FeatureMap):
    """`nu` shifts, of heads of width `head_dim`."""

    def __init__(self, head_dim: int, *, nu: int) -> None:
        super().__init__()
        if not 1 <= nu < 2 * head_dim:
            raise ValueError(
                f"'dpfp': nu must be from 1 to {2 * head_dim - 1}, the shifts of twice the head's width, "
                f"not {nu!r}"
            )
        self.nu = nu

    def forward(self, x: Heads) -> Features:
        r = torch.cat([x, -x], -1).relu()
        return torch.cat([r * r.roll(-j, -1) for j in range(1, self.nu + 1)], -1)
