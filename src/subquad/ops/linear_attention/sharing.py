"""The sums of a sequence that several ranks share, from each rank's own, which they exchange once.

    S = sum_r S_r, z = sum_r z_r        over all ranks, or in the causal form over those before one's own

as in Sun, Lan et al.: LASP-2. arXiv:2502.07563, where one collective gathers the states of linear attention.
The denominator z goes with them; so do shifts, by which sums of exponentials differ from rank to rank: they
are brought under their largest.
"""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.linear_attention.sums import ShiftedSums, Sums, running_max
from subquad.shards import Shards

AnySums = TypeVar("AnySums", Sums, ShiftedSums)


def of_others(own: AnySums, *, shards: Shards, causal: bool) -> AnySums:
    """The sums over the keys of all ranks or, causal, of those before this one: zeros for the first."""
    e, parts = own.S.shape[-1], [own.S, own.z]
    if isinstance(own, ShiftedSums):
        parts.append(own.c.mT.expand_as(own.z))
    every = shards.gather(torch.cat(parts, -1))
    counted = every[: shards.rank] if causal else every
    if not isinstance(own, ShiftedSums):
        return Sums(counted[..., :e].sum(0), counted[..., e:].sum(0))
    return under_one_shift(counted, e=e, shifts=own.c.shape[-1])


def under_one_shift(every: Float[Tensor, "n b h f _"], *, e: int, shifts: int) -> ShiftedSums:
    """The sum of sums that stand beside their shifts, of which there is one a feature, or one for all."""
    c = every[..., e + 1 :].detach()
    top = running_max(c, dim=0)
    weighted = ((c - top).exp() * every[..., : e + 1]).sum(0)
    return ShiftedSums(weighted[..., :e], weighted[..., e:], top[0].mT[..., :shifts])
