"""A mechanism with its projections: what is drawn by name, tied, and drawn anew as one."""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from subquad.mechanism import Mechanism


class AttentionLayer(nn.Module, ABC):
    """From tokens to tokens by a mechanism.

    attention: the mechanism's name.
    options: the mechanism's own.
    """

    attention: str
    options: dict[str, Any]
    mechanism: Mechanism

    @abstractmethod
    def build_mechanism(self) -> Mechanism:
        """A mechanism such as this layer's, with weights of its own."""
