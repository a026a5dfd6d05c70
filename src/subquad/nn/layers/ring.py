"""Neighbours in a ring that closes over the real tokens of a row."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def ring(length: int, count: Int[Tensor, " b"]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Of each place the one before and the one behind, in a ring of the first `count` places of each row."""
    places, size = torch.arange(length, device=count.device), count.clamp(min=1)[:, None]
    return (places - 1) % size, (places + 1) % size


def take(x: Float[Tensor, "b t *each"], places: Int[Tensor, "b s"]) -> Float[Tensor, "b s *each"]:
    """What stands at these places of each row."""
    index = places.reshape(*places.shape, *(1,) * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, index)
