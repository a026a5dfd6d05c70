"""Which part of a history each example has seen, and its answer."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Real


@dataclass(frozen=True)
class Examples:
    """Which events each example has seen, when it is asked, and the answer."""

    entity: Int[np.ndarray, " n"]  # place in Histories.entities
    start: Int[np.ndarray, " n"]  # its events are start .. stop - 1
    stop: Int[np.ndarray, " n"]
    until: Float[np.ndarray, " n"]  # the end of the history, which ages count from
    target: Real[np.ndarray, " n"]  # class, or quantity in its own units

    def __len__(self) -> int:
        return len(self.target)
