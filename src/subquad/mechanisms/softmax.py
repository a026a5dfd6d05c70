"""Softmax attention: the exact, quadratic baseline, by PyTorch's fused kernel.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j

A stream remembers all keys and values so far, so its state grows.

Vaswani et al.: Attention Is All You Need. NeurIPS 2017, arXiv:1706.03762, section 3.2.1.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from subquad.mechanism import Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.attention import attention
from subquad.ops.shared.packing import Packing
from subquad.ops.shared.slots import KVCache, extend, is_known_full, reserve
from subquad.shards import Shards


class SoftmaxAttention(Mechanism):
    """Exact attention; what all others are measured against. It has no options.

    Approximates nothing: it is softmax attention.

    Not for long sequences: work grows with the square of the length, and so does memory where a mask or a
    machine without a fused kernel makes PyTorch form the weights.
    """

    traits = Traits(
        name="softmax",
        paper="arXiv:1706.03762",
        family="exact",
        bidirectional=True,
        causal="strict",
        cross=True,
        state="growing",
        cost=2.0,
        normalised=True,
        limit={},
        exchange="keys",
    )

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        scores = q @ k.mT / q.shape[-1] ** 0.5
        seen = torch.ones_like(scores, dtype=torch.bool)
        if self.causal:
            seen = seen.tril()
        if valid is not None:
            seen = seen & valid[:, None, None, :]
        lowest = torch.finfo(scores.dtype).min  # finite, so that a row without keys has gradients
        return scores.masked_fill(~seen, lowest).softmax(-1).masked_fill(~seen, 0) @ v

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        if valid is None:
            return attention(q, k, v, causal=self.causal)
        seen = valid[:, None, None, :]
        if self.causal:
            seen = seen & past(q.shape[2], k.shape[2], device=q.device)
        return attention(q, k, v, seen=seen)

    def step(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        valid: Valid | None = None,
        state: KVCache | None = None,
        in_place: bool = False,
    ) -> tuple[Outputs, KVCache]:
        packing = Packing.of(valid, like=k)
        cache = extend(state, k, v, packing=packing, in_place=in_place)
        if state is None and valid is None:
            return attention(q, k, v, causal=True), cache
        if q.shape[2] == 1 and is_known_full(cache):
            return attention(q, cache.k, cache.v), cache
        known = torch.arange(1, q.shape[2] + 1, device=q.device) if valid is None else valid.cumsum(1)
        if state is not None:
            known = known + state.count[:, None]
        seen = torch.arange(cache.k.shape[2], device=q.device) < known[..., None]
        return attention(q, cache.k, cache.v, seen=seen[:, None]), cache

    def sharded(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None, shards: Shards
    ) -> Outputs:
        """All keys and values go to all ranks, as in LASP-2's hybrid (arXiv:2502.07563); queries stay."""
        every, real = shards.gather_tokens(torch.cat([k, v], -1), valid)
        known_k, known_v = every.split([k.shape[-1], v.shape[-1]], -1)
        if not self.causal:
            return attention(q, known_k, known_v, seen=None if real is None else real[:, None, None])
        first = shards.rank * max(shards.lengths)
        i, j = (torch.arange(n, device=q.device) for n in (q.shape[2], known_k.shape[2]))
        seen = (j <= first + i[:, None])[None, None]
        return attention(q, known_k, known_v, seen=seen if real is None else seen & real[:, None, None])

    def reserve(self, state: KVCache, tokens: int) -> KVCache:
        return reserve(state, tokens)


def past(t: int, s: int, *, device: torch.device) -> Bool[Tensor, "t s"]:
    """Which of `s` keys the last `t` tokens may see: themselves and what came before."""
    return torch.ones(t, s, dtype=torch.bool, device=device).tril(s - t)
