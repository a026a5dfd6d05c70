"""Causal linear products whose past fades: a matrix remembers keys and values, and forgets.

    out_i = q_i^T S_i,    S_i = diag(alpha_i) S_(i-1) + k_i v_i^T,    0 <= alpha <= 1

so that out_i = sum_(j <= i) (sum_c q_ic a_ijc k_jc) v_j, where a_ij = alpha_(j+1) ... alpha_i is what is left
at i of what was written at j. Inside a chunk that is a triangular matrix of weights; what came before the
chunk acts through S, which advances a chunk at a time.

The usual a_ij = exp(G_i - G_j), with running sums G of log alpha, is avoided: taken apart for a matrix
product, exp(-G_j) overflows; left whole, the difference loses the small decays after a large one. Here
what is left is a product of the decays in question, or the exponential of a sum of their logarithms: never
more than one, never a difference. Over a whole chunk it is such a sum, since products of decays near one
would add up their roundings from chunk to chunk.

    one decay a head         c x c such sums, which is little beside the products; one such matrix for all
                             chunks, if all tokens fade alike
    one for each channel     by halves: what a key of the first half left at its end, times what is left of
                             that at a query of the second half. The halves are halved again; all levels
                             together cost half of one full product

`blocks.py` runs it over blocks of tokens; the compiled kernels are in native/decay.cpp.

Sun et al.: Retentive Network. arXiv:2307.08621, section 2.1. Yang et al.: Gated Linear Attention Transformers
with Hardware-Efficient Training. ICML 2024, arXiv:2312.06635, section 4.3, whose secondary chunks are one
level of halves.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.recurrence.chain import Chain, Matrix
from subquad.ops.shared.fading import between
from subquad.ops.shared.segments import chunked, unchunked

CHUNK = 64  # tokens, a power of two; measured best on CPUs, forward and back, of 32, 64 and 128

Queries = Float[Tensor, "b h t d"]
Values = Float[Tensor, "b h t e"]
LogDecays = Float[Tensor, "#b #h t #d"]  # at most 0; one for each channel of a key, or one for all


class Fading(NamedTuple):
    """What is left over the parts of each chunk."""

    since_start: Float[Tensor, "#b #h #n c #d"]  # at a token, of what the chunk found
    until_end: Float[Tensor, "#b #h #n c #d"]  # at the chunk's end, of what the token wrote
    log_whole: Float[Tensor, "#b #h #n #d"]  # at the chunk's end, of what the chunk found: its logarithm

    def log_each(self, count: int) -> Float[Tensor, "#b #h n #d"]:
        """`log_whole` of each of `count` chunks, which may have one for all."""
        return self.log_whole.expand(-1, -1, count, -1)


def advance(
    q: Queries, k: Queries, v: Values, log_decay: LogDecays, *, state: Matrix, chain: Chain
) -> tuple[Values, Matrix]:
    """A block of tokens, its chunks side by side."""
    length = q.shape[2]
    q, k, v, log_decay = (chunked(x, CHUNK) for x in (q, k, v, once(log_decay)))
    if log_decay.shape[-1] == 1:
        fading = fade(log_decay)
        weights = (q @ k.mT).mul_(between(log_decay))
    else:
        weights, fading = weights_by_halves(q, k, log_decay)
    written = (k * fading.until_end).mT @ v
    found, state = chain.faded(written, fading.log_each(q.shape[2]), state)
    return unchunked(chunk_outputs(weights, v, q * fading.since_start, found), length), state


def backward(
    grad: Values,
    grad_state: Matrix,
    q: Queries,
    k: Queries,
    v: Values,
    log_decay: LogDecays,
    *,
    state: Matrix,
    chain: Chain,
) -> tuple[Queries, Queries, Values, LogDecays, Matrix]:
    """Gradients of what `advance` is given. That of a log_decay is the flow through it: of all that
    was written before and is read after, each term once, and never a difference of sums.
    """
    length, like = q.shape[2], log_decay.shape
    q, k, v, log_decay, grad = (chunked(x, CHUNK) for x in (q, k, v, log_decay, grad))
    fading = fade(log_decay)
    kept, asked = k * fading.until_end, q * fading.since_start
    written, pulled = kept.mT @ v, asked.mT @ grad
    before, _ = chain.faded(written, fading.log_whole, state)
    due, grad_state = chain.faded(pulled.flip(2), fading.log_whole.flip(2), grad_state)
    after = due.flip(2)
    of_weights = (grad @ v.mT).tril_()
    dq = (grad @ before.mT).mul_(fading.since_start)
    dk = (v @ after.mT).mul_(fading.until_end)
    flow = (before * after).sum(-1).mul_(fading.log_whole.exp())[..., None, :]
    flow = earlier(k * dk).add_(later(q * dq)).add_(flow)
    if log_decay.shape[-1] == 1:
        left = between(log_decay)
        weights = (q @ k.mT).mul_(left)
        flow = flow.sum(-1, keepdim=True).add_(across(of_weights * weights))
        of_weights.mul_(left)
        dq += of_weights @ k
        dk += of_weights.mT @ q
    else:
        weights, _ = weights_by_halves(q, k, log_decay)
        backward_by_halves(of_weights, q, k, log_decay, dq, dk, flow)
    dv = chunk_outputs(weights.mT, grad, kept, after)
    dq, dk, dv, flow = (unchunked(x, length) for x in (dq, dk, dv, flow))
    return dq, dk, dv, flow.sum_to_size(like), grad_state


def earlier(x: Float[Tensor, "*b c d"]) -> Float[Tensor, "*b c d"]:
    """Sums over the tokens before each."""
    return F.pad(x[..., :-1, :], (0, 0, 1, 0)).cumsum(-2)


def later(x: Float[Tensor, "*b c d"]) -> Float[Tensor, "*b c d"]:
    """Sums over each token and those after it."""
    return x.flip(-2).cumsum(-2).flip(-2)


def across(terms: Float[Tensor, "b h n c c"]) -> Float[Tensor, "b h n c 1"]:
    """For each decay the sum of terms (i, j) that it stands between, j < l <= i."""
    return F.pad(terms[..., :-1].cumsum(-1).tril_(-1).sum(-2), (1, 0))[..., None]


def chunk_outputs(
    weights: Float[Tensor, "b h n c c"],
    v: Float[Tensor, "b h n c e"],
    q: Float[Tensor, "b h n c d"],
    found: Float[Tensor, "b h n d e"],
) -> Float[Tensor, "b h n c e"]:
    """What queries read of their own chunk, and of what it found."""
    out = (weights @ v).flatten(0, 2)
    return out.baddbmm_(q.flatten(0, 2), found.flatten(0, 2)).unflatten(0, q.shape[:3])


def once(log_decay: LogDecays) -> Float[Tensor, "#b #h l #d"]:
    """One chunk's for all, where there are whole chunks and all tokens fade alike."""
    length = log_decay.shape[2]
    alike = length > 0 and length % CHUNK == 0 and log_decay.stride(2) == 0
    return log_decay[:, :, :CHUNK] if alike else log_decay


def fade(log_decay: Float[Tensor, "#b #h n c #d"]) -> Fading:
    since_start = log_decay.cumsum(-2)
    later = F.pad(log_decay[..., 1:, :], (0, 0, 0, 1))
    until_end = later.flip(-2).cumsum(-2).flip(-2)
    return Fading(since_start.exp(), until_end.exp(), since_start[..., -1, :])


def weights_by_halves(
    q: Float[Tensor, "b h n c d"], k: Float[Tensor, "b h n c d"], log_decay: Float[Tensor, "#b #h n c d"]
) -> tuple[Float[Tensor, "b h n c c"], Fading]:
    """sum_c q_ic a_ijc k_jc for j <= i, and zero where i < j; for parts of 1, 2, 4, ... c tokens in turn."""
    weights = (q * k).sum(-1).diag_embed()
    start, end = log_decay.exp(), torch.ones_like(log_decay)
    for size, since_start, until_end in levels(start, end):
        read = since_start * halves(q, size)[1]
        corners(weights, size).copy_(read @ (until_end * halves(k, size)[0]).mT)
    return weights, Fading(start, end, log_decay.sum(-2))


def backward_by_halves(
    of_weights: Float[Tensor, "b h n c c"],
    q: Float[Tensor, "b h n c d"],
    k: Float[Tensor, "b h n c d"],
    log_decay: Float[Tensor, "#b #h n c d"],
    dq: Float[Tensor, "b h n c d"],
    dk: Float[Tensor, "b h n c d"],
    flow: Float[Tensor, "b h n c d"],
) -> None:
    """Add the gradients of q, k and log_decay through the weights."""
    own = of_weights.diagonal(dim1=-2, dim2=-1)[..., None]
    dq.addcmul_(own, k)
    dk.addcmul_(own, q)
    for size, since_start, until_end in levels(log_decay.exp(), torch.ones_like(log_decay)):
        (_, q_2), (k_1, _), here = halves(q, size), halves(k, size), corners(of_weights, size)
        of_read = (here @ (until_end * k_1)).mul_(since_start)
        of_kept = (here.mT @ (since_start * q_2)).mul_(until_end)
        halves(dq, size)[1].add_(of_read)
        halves(dk, size)[0].add_(of_kept)
        halves(flow, size)[1].add_(later(of_read.mul_(q_2)))
        halves(flow, size)[0].add_(earlier(of_kept.mul_(k_1)))


def levels(
    start: Float[Tensor, "#b #h n c d"], end: Float[Tensor, "#b #h n c d"]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For parts of 1, 2, 4, ... tokens what is left at tokens of a second part since its start, and until the
    end of a first. `start` and `end`, what is left in each part, come to be that of a whole chunk.
    """
    size = 1
    while size < start.shape[-2]:
        (start_1, start_2), (end_1, _) = halves(start, size), halves(end, size)
        yield size, start_2, end_1
        end_1 *= start_2[..., -1:, :]
        start_2 *= start_1[..., -1:, :]
        size *= 2


def corners(weights: Float[Tensor, "b h n c c"], size: int) -> Float[Tensor, "b h n p l l"]:
    """Those of queries in a second part and keys in the first part before it: a view."""
    _, second = halves(weights, size)
    parts = second.unflatten(-1, (-1, 2, size))[..., 0, :]  # (b h n p l p l)
    return parts.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def halves(x: Float[Tensor, "b h n c d"], size: int) -> tuple[Tensor, Tensor]:
    """The first and the second `size` tokens of every 2 `size`: views of (b h n p size d)."""
    both = x.unflatten(-2, (-1, 2, size))
    return both.select(-3, 0), both.select(-3, 1)
