"""What a recurrence found before the tokens of one rank, of a sequence that several share.

A shard turns the matrix that it finds into

    S_after = left S_before + added

where `left` is what its decays leave of each channel of a key, or by the delta rule a (d, d) matrix, the
product of (I - beta_i k_i k_i^T) alpha_i over its tokens. Both follow from its own tokens: `added` is what it
makes of zeros, and the columns of `left` what it makes of those of the identity where it writes zeros. Ranks
exchange both once, and each composes those before its own; in the form that reads both ways, those behind it
too, from the other end. One exchange of states is LASP-2's (Sun, Lan et al., arXiv:2502.07563); that the
delta rule's matrices go with them is ours.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.recurrence import decayed_product, delta_product
from subquad.ops.recurrence.decay import Matrix
from subquad.ops.recurrence.rows import Fusion, RecurrenceInputs, preprocess
from subquad.ops.shared.precision import wide

Maps = Float[Tensor, "ranks b h d _"]  # added, and behind it left


def shard_map(tokens: RecurrenceInputs, *, zeros: Matrix, fusion: Fusion) -> Float[Tensor, "b h d _"]:
    """What these tokens do to the state before them: `added` and `left`."""
    q, k, v, log_decay, beta = tokens
    fusion = fusion._replace(rms_norm_eps=0.0, scale=None, gate=None)
    b, h, d, _ = zeros.shape
    if beta is None:
        _, added = decayed_product(q, k, v, log_decay, state=zeros, fusion=fusion)
        (log_decay,) = wide(preprocess(tokens, fusion).log_decay)
        left = log_decay.sum(2).exp().expand(b, h, d)[..., None]
        return torch.cat([added, left.to(added.dtype)], -1)
    one = torch.eye(d, dtype=zeros.dtype, device=zeros.device).expand(b, h, d, d)
    silent = F.pad(v, (0, d))
    return delta_product(q, k, silent, beta, log_decay, state=torch.cat([zeros, one], -1), fusion=fusion)[1]


def compose(maps: Maps, *, e: int) -> Matrix:
    """What they make of zeros, one after the other; `added` is e wide."""
    state = maps[:0, ..., :e].sum(0)  # zeros that lead back to the maps, so that every rank has a gradient
    for each in maps:
        added, left = each[..., :e], each[..., e:]
        state = added + (left * state if left.shape[-1] == 1 else left @ state)
    return state
