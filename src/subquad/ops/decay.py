"""Causal linear products whose past fades: a matrix remembers keys and values, and forgets.

    out_i = q_i^T S_i,    S_i = diag(alpha_i) S_(i-1) + k_i v_i^T,    0 <= alpha <= 1

so that out_i = sum_(j <= i) (sum_c q_ic a_ijc k_jc) v_j, where a_ij = alpha_(j+1) ... alpha_i is what is left
at i of what was written at j. Inside a chunk that is a triangular matrix of weights; what came before the
chunk acts through S, which advances a chunk at a time.

The usual a_ij = exp(G_i - G_j), with running sums G of log alpha, is avoided: taken apart for a matrix
product, exp(-G_j) overflows; left whole, the difference loses the small decays after a large one. Here every
exponent is a sum of logarithms of the decays in question: never positive, never a difference.

    one decay a head         c x c such sums, which is little beside the products
    one for each channel     by halves: what a key of the first half left at its end, times what is left of
                             that at a query of the second half. The halves are halved again; all levels
                             together cost half of one full product

Sun et al.: Retentive Network. arXiv:2307.08621, section 2.1. Yang et al.: Gated Linear Attention Transformers
with Hardware-Efficient Training. ICML 2024, arXiv:2312.06635, section 4.3, whose secondary chunks are one
level of halves.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from subquad.ops import flash_linear

CHUNK = 64  # tokens, a power of two; measured best on CPUs, forward and back, of 32, 64 and 128

Queries = Float[Tensor, "b h t d"]
Values = Float[Tensor, "b h t e"]
LogDecays = Float[Tensor, "#b #h t #d"]  # at most 0; one for each channel of a key, or one for all
Matrix = Float[Tensor, "b h d e"]


class Fading(NamedTuple):
    """What is left over the parts of each chunk."""

    since_start: Float[Tensor, "#b #h n c #d"]  # at a token, of what the chunk found
    until_end: Float[Tensor, "#b #h n c #d"]  # at the chunk's end, of what the token wrote
    whole: Float[Tensor, "#b #h n #d 1"]  # at the chunk's end, of what the chunk found


def decayed_product(
    q: Queries, k: Queries, v: Values, log_decay: LogDecays, *, state: Matrix, given: torch.dtype
) -> tuple[Values, Matrix]:
    """The outputs, and the state after the last token. A token with k = 0 and log_decay = 0 leaves no trace.

    `given` is the dtype in which the caller was given q, k and v: half precision may go to kernels of a GPU.
    """
    if flash_linear.serves(q, given=given):
        return flash_linear.decayed_product(q, k, v, log_decay, state=state, given=given)
    length = q.shape[2]
    q, k, v, log_decay = (chunked(x) for x in (q, k, v, log_decay))
    if log_decay.shape[-1] == 1:
        weights, fading = (q @ k.mT) * between(log_decay), fade(log_decay)
    else:
        weights, fading = weights_by_halves(q, k, log_decay)
    written = (k * fading.until_end).mT @ v
    found = []
    for n in range(q.shape[2]):
        found.append(state)
        state = torch.addcmul(written[:, :, n], fading.whole[:, :, n], state)
    out = weights @ v + (q * fading.since_start) @ torch.stack(found, 2)
    return joined(out, length), state


def fade(log_decay: Float[Tensor, "#b #h n c #d"]) -> Fading:
    since_start = log_decay.cumsum(-2)
    later = F.pad(log_decay[..., 1:, :], (0, 0, 0, 1))
    until_end = later.flip(-2).cumsum(-2).flip(-2)
    return Fading(since_start.exp(), until_end.exp(), since_start[..., -1, :, None].exp())


def between(log_decay: Float[Tensor, "#b #h n c 1"]) -> Float[Tensor, "#b #h n c c"]:
    """a_ij: what is left at token i of what token j wrote; zero where i < j."""
    c = log_decay.shape[-2]
    past = torch.ones(c, c, dtype=torch.bool, device=log_decay.device).tril()
    terms = log_decay.expand(*log_decay.shape[:-1], c).masked_fill(~past.tril(-1), 0)
    return terms.cumsum(-2).masked_fill(~past, -math.inf).exp()


def weights_by_halves(
    q: Float[Tensor, "b h n c d"], k: Float[Tensor, "b h n c d"], log_decay: Float[Tensor, "#b #h n c d"]
) -> tuple[Float[Tensor, "b h n c c"], Fading]:
    """sum_c q_ic a_ijc k_jc for j <= i, and zero where i < j; for parts of 1, 2, 4, ... c tokens in turn."""
    weights, size = (q * k).sum(-1)[..., None, None], 1
    start, end = log_decay, torch.zeros_like(log_decay)  # from a part's start to a token, and on to its end
    while size < q.shape[-2]:
        (start_1, start_2), (end_1, end_2) = (halves(x, size) for x in (start, end))
        across = (halves(q, size)[1] * start_2.exp()) @ (halves(k, size)[0] * end_1.exp()).mT
        first, second = weights.unflatten(-3, (-1, 2)).unbind(-3)
        weights = torch.cat([F.pad(first, (0, size)), torch.cat([across, second], -1)], -2)
        start = torch.cat([start_1, start_1[..., -1:, :] + start_2], -2).flatten(-3, -2)
        end = torch.cat([end_1 + start_2[..., -1:, :], end_2], -2).flatten(-3, -2)
        size *= 2
    return weights.squeeze(-3), Fading(start.exp(), end.exp(), start[..., -1, :, None].exp())


def halves(x: Float[Tensor, "b h n c d"], size: int) -> tuple[Tensor, ...]:
    """The first and the second `size` tokens of every 2 `size`: two of (b h n p size d)."""
    return x.unflatten(-2, (-1, 2, size)).unbind(-3)


def chunked(x: Float[Tensor, "b h t c"]) -> Float[Tensor, "b h n l c"]:
    """Cut into chunks, at least one, with zeros behind the last token; short sequences make a shorter one."""
    length = max(x.shape[2], 1)
    size = min(CHUNK, 1 << (length - 1).bit_length())
    whole = length + -length % size
    return F.pad(x, (0, 0, 0, whole - x.shape[2])).unflatten(2, (-1, size))


def joined(x: Float[Tensor, "b h n l c"], length: int) -> Float[Tensor, "b h t c"]:
    return x.flatten(2, 3)[:, :, :length]
