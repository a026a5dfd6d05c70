"""Random numbers that are the same on every machine and in every version of NumPy.

NumPy promises that for the raw bits of a bit generator, and not for what a `Generator` makes of them. Only
integers, and sums, products and quotients of floats, which IEEE 754 rounds alike everywhere, go in.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int


class RandomBits:
    """A stream of random numbers from a seed."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    @property
    def state(self) -> Mapping[str, str]:
        """Where the stream stands, as JSON, which has no numbers of 128 bits; set, it goes on from there."""
        state: Any = self.bits.state["state"]
        return {name: hex(number) for name, number in state.items()}

    @state.setter
    def state(self, state: Mapping[str, str]) -> None:
        numbers = {name: int(state[name], 16) for name in ("state", "inc")}
        self.bits.state = {**self.bits.state, "state": numbers}  # pyright: ignore[reportAttributeAccessIssue]

    def uniform(self, *shape: int) -> Float[np.ndarray, "*shape"]:
        """Numbers from [0, 1), by the upper 53 bits."""
        raw = self.bits.random_raw(int(np.prod(shape, dtype=np.int64)))
        return (raw >> np.uint64(11)).reshape(shape) * 2.0**-53

    def below(self, bound: int, *shape: int) -> Int[np.ndarray, "*shape"]:
        """Whole numbers from 0 to `bound`, excluded."""
        return (self.uniform(*shape) * bound).astype(np.int64)

    def sample(self, rows: int, count: int, *, among: int) -> Int[np.ndarray, "rows count"]:
        """In each row so many different numbers below `among`, each order as likely (Fisher and Yates)."""
        deck = np.tile(np.arange(among), (rows, 1))
        row = np.arange(rows)
        for place in range(count):
            other = place + self.below(among - place, rows)
            deck[row, place], deck[row, other] = deck[row, other], deck[row, place]
        return deck[:, :count]

    def weighted_sample(
        self, rows: int, count: int, *, weights: Float[np.ndarray, " among"]
    ) -> Int[np.ndarray, "rows count"]:
        """In each row so many different places in `weights`, one after the other by what is left of them."""
        left = np.tile(weights, (rows, 1))
        chosen = np.empty((rows, count), np.int64)
        for place in range(count):
            total = np.cumsum(left, 1)
            drawn = self.uniform(rows, 1) * total[:, -1:]
            chosen[:, place] = (total <= drawn).sum(1)
            left[np.arange(rows), chosen[:, place]] = 0
        return chosen
