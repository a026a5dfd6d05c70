"""What a feature map is."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.ops.linear_attention import FeatureKind, KernelInputs

Heads = Float[Tensor, "b h t d"]
Keys = Float[Tensor, "b h s d"]
Features = Float[Tensor, "b h t f"]
LogFeatures = Float[Tensor, "b h t f"] | Float[Tensor, "b h t 1"]


class FeatureMap(nn.Module, ABC):
    """phi: queries and keys to features whose dot products are the weights of attention."""

    signed = False  # whether features have an `amplitude`, whose sign log space cannot hold

    @property
    def fused(self) -> bool:
        """Whether the operator makes the features, and `given` passes queries and keys as they are."""
        return False

    @abstractmethod
    def forward(self, x: Heads) -> Features:
        """phi(x), as the paper writes it."""

    def prepare(self, q: Heads, k: Keys) -> KernelInputs:
        """What linear attention starts from: features, or what it makes them from by itself."""
        return KernelInputs(self(q), self(k))

    def penalty(self) -> Float[Tensor, ""]:
        """The map's own loss term from its latest use."""
        return torch.zeros(())

    def redraw(self, *, generator: torch.Generator) -> None:
        """Draw what is random anew."""


class ExponentialFeatureMap(FeatureMap):
    """A map phi = exp(...), or amplitude * exp(...), that is safe only in log space.

    A factor that is the same for all features of a query, or a constant, cancels in the normalised sum and
    may be left out. Exponents that are the same for all features of a token need one column only.
    """

    @abstractmethod
    def log_queries(self, q: Heads) -> LogFeatures:
        """log phi(q), up to one constant a query; where there is an amplitude, log (phi(q) / amplitude)."""

    @abstractmethod
    def log_keys(self, k: Heads) -> LogFeatures:
        """log phi(k), up to one constant for all keys; where there is an amplitude, as for queries."""

    def prepare(self, q: Heads, k: Keys) -> KernelInputs:
        return KernelInputs(self.log_queries(q), self.log_keys(k), FeatureKind.LOGS)

    def amplitude(self, x: Heads) -> Features | None:
        """Factors of at most about one, of either sign, for queries and keys alike; None: all are one."""
        return None
