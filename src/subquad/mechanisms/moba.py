"""MoBA, mixture of block attention: each query chooses whole blocks of keys by their means.

    S_i = own block of i, and the k - 1 blocks J before it with the largest q_i . mean(K_J)
    out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j    over j <= i in the blocks S_i

Blocks are of B tokens. In its own block, which is always among the k, a query sees the tokens up to itself.
It scores none but blocks before its own, which are complete, so that no later token plays a part in what it
sees. Choosing has no gradient: queries and keys learn from the attention alone. Work is O(t k B d) for the
attention and O(t^2 d / B) for the scores.

Lu et al.: MoBA: Mixture of Block Attention for Long-Context LLMs. arXiv:2502.13189. As in the authors' plain
code (`moba_naive`) k counts the own block, scores are not scaled, and each head chooses for itself. Of blocks
with equal scores the first are taken.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.bounds import Count
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.block_attention import (
    GATHERED_QUERIES,
    best_before,
    block_attention,
    gathered_blocks,
)
from subquad.ops.shared.operator import call_op
from subquad.ops.shared.packing import Packing
from subquad.ops.shared.precision import wide
from subquad.ops.shared.scan import scan
from subquad.ops.shared.slots import KVCache, extend, reserve


class MobaState(NamedTuple):
    """All real tokens so far, and the sum of each block's keys."""

    tokens: KVCache
    sums: Float[Tensor, "b h blocks d"]


class MobaAttention(Mechanism):
    """Softmax attention within the blocks of keys that suit a query best on average.

    block: B, tokens of a block.
    top: k, blocks that a query sees, its own among them.

    Approximates causal softmax attention by the blocks where large weights are likely, and equals it where
    there are no more than k blocks. It has no weights of its own, so that models can change between both.

    Not for single tokens that matter among many that do not: a mean over 512 keys hardly shows one. Not for
    short sequences: up to k B tokens, 1,536 at the defaults, it is softmax attention for more work. The state
    of a stream grows as that of softmax attention does; a step only reads less of it.
    """

    zeros_padding = False
    traits = Traits(
        name="moba",
        paper="arXiv:2502.13189",
        family="content",
        causal="strict",
        state="growing",
        cost=2.0,  # of the scores; that of the attention is 1
        normalised=True,
        limit={"block": 4, "top": 6},
        tiny={"block": 4, "top": 3},
    )

    def __init__(self, dims: Dims, *, causal: bool, block: Count = 512, top: Count = 3) -> None:
        super().__init__(dims, causal=causal)
        self.block, self.top = block, top

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding, query by query."""
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            q_row, k_row, v_row = (x[row][:, real] for x in (q, k, v))
            outputs = [v_row[:, :0]]
            for i in range(q_row.shape[1]):
                own, query = i // self.block, q_row[:, i, None]
                blocks = k_row[:, : own * self.block].unflatten(1, (own, self.block))
                gate = (query * blocks.mean(2)).sum(-1)
                first = gate.argsort(dim=-1, descending=True, stable=True)[:, : self.top - 1]
                seen = torch.zeros_like(gate, dtype=torch.bool).scatter(1, first, True)
                seen = seen.repeat_interleave(self.block, 1)
                seen = torch.cat([seen, seen.new_ones(len(seen), i + 1 - seen.shape[1])], 1)
                scores = query @ k_row[:, : i + 1].mT / q.shape[-1] ** 0.5
                weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
                outputs.append(weights @ v_row[:, : i + 1])
            out[row, :, real] = torch.cat(outputs, 1)
        return out

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        packing = Packing.of(valid, like=k)
        q, k, v = wide(*(packing.pack(x) for x in (q, k, v)))
        return packing.unpack(self._attend(q, k, v, None if valid is None else packing.count))

    def _attend(self, q: Queries, k: Keys, v: Values, lengths: Int[Tensor, " b"] | None) -> Outputs:
        chosen = call_op(_best_blocks, q.detach(), k.detach(), self.block, self.top - 1)
        return block_attention(q, k, v, chosen, block=self.block, lengths=lengths)

    def step(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        valid: Valid | None = None,
        state: MobaState | None = None,
        in_place: bool = False,
    ) -> tuple[Outputs, MobaState]:
        if state is None:
            packing = Packing.of(valid, like=k)
            return self.forward(q, k, v, valid=valid), self._remember(None, k, v, packing, in_place=False)

        def advance(
            q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: MobaState
        ) -> tuple[Outputs, MobaState]:
            packing = Packing.of(valid, like=k)
            after = self._remember(state, k, v, packing, in_place=in_place)
            i = state.tokens.count[:, None] + torch.arange(q.shape[2], device=q.device)
            return packing.unpack(self._read(packing.pack(q), after, i)), after

        return scan(advance, q, k, v, valid=valid, state=state, chunk=GATHERED_QUERIES)

    def _remember(
        self, state: MobaState | None, k: Keys, v: Values, packing: Packing, *, in_place: bool
    ) -> MobaState:
        """The state after one more chunk."""
        cache = extend(None if state is None else state.tokens, k, v, packing=packing, in_place=in_place)
        (new,) = wide(packing.pack(k))
        sums = new.new_zeros(*new.shape[:2], 0, new.shape[3]) if state is None else state.sums
        if not in_place:
            sums = F.pad(sums, (0, 0, 0, -(-cache.k.shape[2] // self.block) - sums.shape[2]))
        first = cache.count - packing.count
        block = (first[:, None] + torch.arange(new.shape[2], device=new.device)) // self.block
        block = block.clamp(max=max(sums.shape[2] - 1, 0))[:, None, :, None].expand_as(new)
        sums = sums.scatter_add_(2, block, new) if in_place else sums.scatter_add(2, block, new)
        return MobaState(cache, sums)

    def _read(self, q: Queries, state: MobaState, i: Int[Tensor, "b t"]) -> Outputs:
        """What tokens i get."""
        q, k, v = wide(q, state.tokens.k, state.tokens.v)
        scores = q.detach() @ (state.sums.detach() / self.block).mT
        chosen = best_before(scores, i // self.block, self.top - 1)
        return gathered_blocks(q, k, v, chosen, block=self.block, i=i)

    def reserve(self, state: MobaState, tokens: int) -> MobaState:
        cache = reserve(state.tokens, tokens)
        blocks = -(-cache.k.shape[2] // self.block)
        sums = F.pad(state.sums, (0, 0, 0, blocks - state.sums.shape[2]))
        return MobaState(cache, sums)


@torch.library.custom_op("subquad::best_blocks", mutates_args=())
def _best_blocks(q: Tensor, k: Tensor, block: int, count: int) -> Tensor:
    """`best_before` of a whole sequence; a node of its own, since in graphs blocks depend on the length."""
    means = F.pad(k, (0, 0, 0, -k.shape[2] % block)).unflatten(2, (-1, block)).mean(3)
    own = torch.arange(q.shape[2], device=q.device) // block
    return best_before(q @ means.mT, own[None], count).contiguous()


@_best_blocks.register_fake
def _(q: Tensor, k: Tensor, block: int, count: int) -> Tensor:
    return q.new_empty(*q.shape[:3], count, dtype=torch.int64)
