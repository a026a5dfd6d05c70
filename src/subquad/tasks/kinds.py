"""Of what kind the answers of a split are, by numbers such as lengths and distances."""

import numpy as np
from jaxtyping import Int

from subquad.objectives import Kinds

RANGES = 4


def ranges(values: Int[np.ndarray, "n ..."]) -> Kinds:
    """Up to four ranges that hold about equally many answers each; equal numbers stay together.

    A range that would hold less than half as many is a part of the next.
    """
    shares = np.arange(1, RANGES) / RANGES
    lowest = [int(values.min())]
    for low in np.unique(np.quantile(values, shares, method="higher")).tolist():
        held = np.count_nonzero((values >= lowest[-1]) & (values < low))
        if 2 * RANGES * held >= values.size:
            lowest.append(low)
        elif len(lowest) > 1:
            lowest[-1] = low
    of = np.searchsorted(lowest[1:], values, side="right")
    parts = [values[of == place] for place in range(of.max() + 1)]
    return Kinds(tuple(span(int(part.min()), int(part.max())) for part in parts), of)


def each(values: Int[np.ndarray, "n ..."]) -> Kinds:
    """Every number by itself."""
    distinct, of = np.unique(values, return_inverse=True)
    return Kinds(tuple(f"{value:,}" for value in distinct), of.reshape(values.shape))


def span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
