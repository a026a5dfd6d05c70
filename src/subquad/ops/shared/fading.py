"""Sums whose past fades, at all places side by side.

    y_n = exp(l_n) y_(n-1) + x_n

as products with what is left of each term at each place, in groups, then among the groups' last sums in the
same way. What is left is always the exponential of a sum of logarithms: never above one, never a quotient or
a difference, so that a logarithm may be -inf.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

GROUP = 32  # places whose products are cheaper than another level


def between(log_decay: Float[Tensor, "*b n 1"]) -> Float[Tensor, "*b n n"]:
    """a_ij = exp(l_(j+1) + ... + l_i): what is left at place i of what was added at j; zero where i < j."""
    terms = log_decay.expand(*log_decay.shape[:-1], log_decay.shape[-2]).tril(-1)
    return terms.cumsum(-2).exp_().tril_()


def fading_sums(x: Float[Tensor, "*b n r"], log_decay: Float[Tensor, "*#b n"]) -> Float[Tensor, "*b n r"]:
    """y_1 to y_n; y_0 is zero, and no gradient goes to the decays."""
    length = x.shape[-2]
    if length <= GROUP:
        return between(log_decay[..., None]) @ x
    missing = -length % GROUP
    x = F.pad(x, (0, 0, 0, missing)).unflatten(-2, (-1, GROUP))
    log_decay = F.pad(log_decay, (0, missing)).unflatten(-1, (-1, GROUP))
    inside = between(log_decay[..., None]) @ x
    through = fading_sums(inside[..., -1, :], log_decay.sum(-1))
    before = F.pad(through[..., :-1, :], (0, 0, 1, 0))
    left = log_decay.cumsum(-1).exp()[..., None]
    return torch.addcmul(inside, left, before[..., None, :]).flatten(-3, -2)[..., :length, :]


def fading_states(
    written: Float[Tensor, "b h n d e"],
    log_whole: Float[Tensor, "#b #h n #d"],
    state: Float[Tensor, "b h d e"] | None,
) -> tuple[Float[Tensor, "b h n d e"], Float[Tensor, "b h d e"]]:
    """S_n before each of n writings, and the last: S_(n+1) = diag(exp(l_n)) S_n + written_n."""
    x = preceded(written, state)
    channels = log_whole.shape[-1]
    apart = x.unflatten(3, (channels, -1)).flatten(-2).transpose(2, 3)  # b h c n+1 r
    sums = fading_sums(apart, F.pad(log_whole.mT, (1, 0)))
    states = sums.transpose(2, 3).unflatten(-1, (-1, x.shape[-1])).flatten(3, 4)
    return states[:, :, :-1], states[:, :, -1]


def preceded(
    written: Float[Tensor, "b h n d e"], first: Float[Tensor, "b h d e"] | None
) -> Float[Tensor, "b h _ d e"]:
    """With one more before the first; None: zeros."""
    if first is None:
        return F.pad(written, (0, 0, 0, 0, 1, 0))
    return torch.cat([first[:, :, None], written], 2)
