"""Weights that a call has no use for take part in its graph all the same.

Data-parallel training waits for a gradient of every weight, and stops where one never comes.
"""

from jaxtyping import Float
from torch import Tensor


def unused(*weights: Tensor) -> Float[Tensor, ""]:
    """Zero, with a gradient of zeros for each of the `weights`, whatever they hold: the sum of none of each.

    Not `0 * weight.sum()`, which is NaN where a weight is not finite.
    """
    first, *others = (weight[None][:0].sum() for weight in weights)
    return sum(others, first)
