"""Sinusoids of positions, and turning by them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sinusoid(n: Int[Tensor, "*n"], width: int, *, like: Tensor) -> Float[Tensor, "*n {width}"]:
    """r_n: the sines of all frequencies, then the cosines."""
    m = torch.arange(width // 2, dtype=like.dtype, device=like.device)
    angle = n[..., None] * 10_000.0 ** (-2 * m / width)
    return torch.cat([angle.sin(), angle.cos()], -1)


def turn(a: Float[Tensor, "*n r"], r: Float[Tensor, "*#n r"]) -> Float[Tensor, "*n r"]:
    """The vector whose product with r_j is that of `a` with r_(i-j), where `r` is r_i; its own inverse."""
    a_sin, a_cos = a.chunk(2, -1)
    sin, cos = r.chunk(2, -1)
    halves = torch.addcmul(a_cos * sin, a_sin, cos, value=-1), torch.addcmul(a_sin * sin, a_cos, cos)
    return torch.cat(halves, -1)
