"""Angles that grow with the position, fast for the first wave and slowly for the last, and turning by them.

Sinusoidal positions: Vaswani et al. 2017, arXiv:1706.03762, section 3.5. Rotary ones: Su et al. 2021,
arXiv:2104.09864, section 3.2.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

LONGEST_WAVE = 10_000.0  # in tokens, over 2 pi; both papers

Ordinals = Int[Tensor, "#b t"]


def rotate(x: Float[Tensor, "b h t d"], ordinals: Ordinals) -> Float[Tensor, "b h t d"]:
    """Turn the pairs (x_i, x_{i + d/2}) by their position; the paper pairs neighbours, which is the same."""
    angles = phases(ordinals, x.shape[-1] // 2, dtype=x.dtype)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def turns(
    ordinals: Ordinals, waves: int, *, dtype: torch.dtype, closed: bool = False
) -> Float[Tensor, "#b t {2*waves}"]:
    """Cosines, then sines, of the angles at each position; see `phases`."""
    angles = phases(ordinals, waves, dtype=dtype, closed=closed)
    return torch.cat([angles.cos(), angles.sin()], -1).to(dtype)


def phases(
    ordinals: Ordinals, waves: int, *, dtype: torch.dtype, closed: bool = False
) -> Float[Tensor, "#b t {waves}"]:
    """The angle of each wave at each position, in float32 at least.

    There are as many equal steps down to the longest wave as waves, so that it is left out, or `closed`: one
    step less, so that it is the last.
    """
    wide = torch.promote_types(dtype, torch.float32)
    steps = max(1, waves - 1) if closed else waves
    rates = LONGEST_WAVE ** -(torch.arange(waves, device=ordinals.device, dtype=wide) / steps)
    return ordinals.to(wide)[..., None] * rates
