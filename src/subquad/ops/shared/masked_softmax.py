"""Softmax over what is seen."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_softmax(
    scores: Float[Tensor, "*b t s"], *, seen: Bool[Tensor, "*#b #t s"]
) -> Float[Tensor, "*b t s"]:
    """Weights that sum to one over the keys that are `seen`; zeros, with finite gradients, where none is."""
    lowest = torch.finfo(scores.dtype).min  # finite, so that a row without keys has gradients
    return scores.masked_fill(~seen, lowest).softmax(-1).masked_fill(~seen, 0)
