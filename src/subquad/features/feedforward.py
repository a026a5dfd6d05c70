"""Trainable feed-forward kernels: phi is a small network on each head's vector.

    phi(x) = f(h_L),    h_0 = x,    h_l = h_(l-1) W_l                               without gate
    phi(x) = h_L,       h_l = f_l(h_(l-1) W_l) * sigmoid(h_(l-1) G_l)               GLU

where f_l is the identity but in the last layer, whose activation f keeps the features positive. Weights are
per head, without bias, and shared by queries and keys. A gate of low rank is G = A B, with A d x r, B r x d.
Orthogonal kernels start from orthogonal W and are kept near them by a penalty, the mean of (W W^T - I)^2,
which counts twice, once for queries and once for keys, as in the authors' code.

Section 3 of arXiv:2211.04076.
"""

from collections.abc import Callable
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.features.feature_map import FeatureMap, Features, Heads

Weights = Float[Tensor, "h d r"]


def positive_gelu(x: Tensor) -> Tensor:
    return F.gelu(x) + 0.1701  # phi must be positive, and gelu's least value is -0.17


ACTIVATIONS: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"softplus": F.softplus, "gelu": positive_gelu, "sigmoid": torch.sigmoid}
)
GATES = ("none", "glu")
DEEPEST = 3  # layers; the paper's ablation goes no further


class FeedForward(FeatureMap):
    """`layers` layers for heads of width `head_dim`; `FeedForwardKernel` describes the options."""

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        gate: str,
        layers: int,
        orthogonal: bool,
        gate_rank: float,
        activation: str,
        strength: float,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.strength = strength if orthogonal else 0.0
        draw = orthogonal_matrices if orthogonal else gaussian_matrices
        self.W = nn.ParameterList(draw(heads, head_dim) for _ in range(layers))
        rank = max(1, round(gate_rank * head_dim))
        self.gates = nn.ModuleList(
            Gate(heads, head_dim, rank=rank) for _ in range(layers if gate == "glu" else 0)
        )

    def forward(self, x: Heads) -> Features:
        for layer, W in enumerate(self.W):
            h = x @ W.to(x.dtype)
            if layer == len(self.W) - 1:
                h = self.activation(h)
            x = h * self.gates[layer](x) if len(self.gates) else h
        return x

    def penalty(self) -> Float[Tensor, ""]:
        if not self.strength:
            return super().penalty()
        eye = torch.eye(self.W[0].shape[-1], dtype=self.W[0].dtype, device=self.W[0].device)
        distances = [(W @ W.mT - eye).square().mean() for W in self.W]
        return 2 * self.strength * torch.stack(distances).sum()  # of queries and of keys


class Gate(nn.Module):
    """sigmoid(x G), G in two factors where its `rank` is below the width."""

    def __init__(self, heads: int, width: int, *, rank: int) -> None:
        super().__init__()
        spread = (2 / width) ** 0.5  # He
        if rank < width:
            self.G = nn.ParameterList(
                [spread * torch.randn(heads, width, rank), torch.randn(heads, rank, width) / rank**0.5]
            )
        else:
            self.G = nn.ParameterList([spread * torch.randn(heads, width, width)])

    def forward(self, x: Heads) -> Heads:
        for factor in self.G:
            x = x @ factor.to(x.dtype)
        return x.sigmoid()


def gaussian_matrices(heads: int, width: int) -> Weights:
    return torch.randn(heads, width, width) / width**0.5


def orthogonal_matrices(heads: int, width: int) -> Weights:
    return torch.stack([nn.init.orthogonal_(torch.empty(width, width)) for _ in range(heads)])
