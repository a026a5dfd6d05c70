"""What a mask of padding must be."""

import torch
from jaxtyping import Float
from torch import Tensor


def require_mask(valid: Tensor, keyed: Float[Tensor, "b h s _"]) -> None:
    """Raise `ValueError` for a mask of another shape or type than the keys ask for."""
    batch, _, keys, _ = keyed.shape
    if valid.dtype != torch.bool or valid.shape != (batch, keys):
        raise ValueError(
            f"valid must be boolean of shape {(batch, keys)} (batch, keys), True at real tokens; "
            f"not {valid.dtype} of shape {tuple(valid.shape)}"
        )
