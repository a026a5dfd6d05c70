"""Measurements over lengths: the exponent of their growth, and the crossover with a reference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

MIN_LENGTHS = 3  # for a fitted exponent: through two points, some power passes exactly


@dataclass(frozen=True)
class Crossover:
    """The length from which a mechanism stays faster than its reference."""

    length: float
    at_or_below: bool = False  # it was faster already at the shortest length measured, which this is

    def __str__(self) -> str:
        return f"≤ {self.length:,.0f}" if self.at_or_below else f"{self.length:,.0f}"


def exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """The p of `value ~ length ** p`, by least squares of the logarithms over the upper half of the lengths.

    The shorter half is left out because fixed costs flatten it, but three lengths stay in. Raises
    `ValueError` for fewer.
    """
    points = _logarithms(lengths, values)
    if len(points) < MIN_LENGTHS:
        raise ValueError(f"an exponent needs at least {MIN_LENGTHS} lengths, not {len(points)}")
    upper = points[-max(MIN_LENGTHS, math.ceil(len(points) / 2)) :]
    return linear_regression(*zip(*upper, strict=True)).slope


def crossover(
    lengths: Sequence[float], values: Sequence[float], reference: Sequence[float]
) -> Crossover | None:
    """The first length from which `values` stay below `reference`, to the longest length measured.

    Between two lengths both are taken as straight lines on logarithmic axes. None: not within this range.
    """
    ours, theirs = _logarithms(lengths, values), _logarithms(lengths, reference)
    excess = [(x, y - z) for (x, y), (_, z) in zip(ours, theirs, strict=True)]
    slower = [i for i, (_, above) in enumerate(excess) if above >= 0]
    if not slower:
        return Crossover(min(lengths), at_or_below=True)
    if slower[-1] == len(excess) - 1:
        return None
    (x0, above), (x1, below) = excess[slower[-1]], excess[slower[-1] + 1]
    return Crossover(math.exp(x0 + (x1 - x0) * above / (above - below)))


def _logarithms(lengths: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """The points on logarithmic axes, in order of length."""
    if len(lengths) != len(values) or not lengths:
        raise ValueError(f"give one value per length, not {len(values)} for {len(lengths)} lengths")
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"give each length once, not {list(lengths)!r}")
    if not all(0 < x < math.inf for x in (*lengths, *values)):
        raise ValueError(
            f"lengths and values must be positive and finite, not {list(lengths)!r}, {list(values)!r}"
        )
    return sorted((math.log(length), math.log(value)) for length, value in zip(lengths, values, strict=True))
