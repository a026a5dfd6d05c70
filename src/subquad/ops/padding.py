"""Padding, hidden once and for all before anything is computed."""

import torch
from jaxtyping import Float
from torch import Tensor


def zero_padding(
    valid: Tensor | None,
    q: Float[Tensor, "b h t d"],
    *keyed: Float[Tensor, "b h s _"],
) -> tuple[Float[Tensor, "b h _ _"], ...]:
    """`q` and the tensors that go by key, with zeros for what stands in padding, NaN and gradients too.

    Masking weights afterwards would not do: 0 * NaN is NaN, in the product and in its gradient. A query
    is only touched where it is not finite, for in cross-attention `valid` says nothing about queries.
    """
    if valid is None:
        return q, *keyed
    padding = ~valid[:, None, :, None]
    if q.shape[2] == valid.shape[1]:
        q = q.masked_fill(padding & ~q.isfinite().all(-1, keepdim=True), 0)
    return q, *(x.masked_fill(padding, 0) for x in keyed)


def require_mask(valid: Tensor, keyed: Float[Tensor, "b h s _"]) -> None:
    """Raise `ValueError` for a mask of another shape or type than the keys ask for."""
    batch, _, keys, _ = keyed.shape
    if valid.dtype != torch.bool or valid.shape != (batch, keys):
        raise ValueError(
            f"valid must be boolean of shape {(batch, keys)} (batch, keys), True at real tokens; "
            f"not {valid.dtype} of shape {tuple(valid.shape)}"
        )
