"""The next token by a model's logits: penalised, divided by a temperature, cut to the likeliest, drawn.

One number between 0 and 1 decides, by the inverse of the distribution function, so that a token costs one
draw whatever the vocabulary, and the same number means the same token on any device.

Temperature and the likeliest k: Fan et al.: Hierarchical Neural Story Generation. ACL 2018, arXiv:1805.04833,
section 5.2. Those with probability p: Holtzman et al.: The Curious Case of Neural Text Degeneration. ICLR
2020, arXiv:1904.09751, section 3.1. The penalty: Keskar et al.: CTRL. 2019, arXiv:1909.05858, section 4.1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.config import SamplingConfig
from subquad.ops.shared.generators import seeded
from subquad.ops.shared.topk import stable_topk

Logits = Float[Tensor, "b v"]


class Uniforms:
    """Numbers from 0 up to, and without, 1: for each row one a token, whatever the device and other rows.

    They are drawn on the host, many tokens at a time (`refill`), and lie where the device finds the next by
    itself.

    purposes: what each row's numbers are for; rows with the same have the same.
    """

    def __init__(self, seed: int, purposes: Sequence[str], *, tokens: int, device: torch.device) -> None:
        self.generators = [seeded(seed, "uniforms", purpose) for purpose in purposes]
        self.numbers = torch.empty(len(purposes), tokens, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)

    def refill(self) -> None:
        """Draw for the next tokens, as many as `tokens` says."""
        size = self.numbers.shape[1]
        self.numbers.copy_(torch.stack([torch.rand(size, generator=own) for own in self.generators]))
        self.place.zero_()

    def next(self) -> Float[Tensor, "b 1"]:
        numbers = self.numbers.index_select(1, self.place)
        self.place += 1
        return numbers


def penalised(logits: Logits, seen: Bool[Tensor, "b v"], penalty: float) -> Logits:
    """Logits in which those of tokens that were `seen` are worse by this factor, whatever their sign.

    The paper divides all of them, which would make negative ones better.
    """
    worse = torch.where(logits > 0, logits / penalty, logits * penalty)
    return worse.where(seen, logits)


def draw(logits: Logits, sampling: SamplingConfig, uniform: Float[Tensor, "b 1"]) -> Int[Tensor, " b"]:
    """A token of each row at the temperature, which is not 0, of those that `top_k` and `top_p` keep."""
    vocabulary, ranked = logits.shape[-1], None
    if sampling.top_k or sampling.top_p < 1:
        ranked = stable_topk(logits, min(sampling.top_k or vocabulary, vocabulary))
        logits = logits.gather(-1, ranked)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    below = (logits / sampling.temperature).softmax(-1).cumsum(-1)
    last = torch.full_like(below[:, :1], below.shape[-1] - 1, dtype=torch.int64)
    if sampling.top_p < 1:
        last = (below < sampling.top_p).sum(-1, keepdim=True).minimum(last)
    place = (below <= uniform * below.gather(-1, last)).sum(-1, keepdim=True).minimum(last)
    return (place if ranked is None else ranked.gather(-1, place)).squeeze(-1)
