"""Attention over the pairs of a sparse pattern: the core of local attention, BigBird and their relatives.

    out_i = sum_{j in S_i} softmax_j(q_i . k_j / sqrt(d)) v_j

S_i, the keys that query i sees, depend on positions only, and a key that several rules allow counts once.
Work and memory grow with the pairs. Positions count real tokens, row by row, and what depends on the length
depends on each row's own.

On CUDA FlexAttention sees the same pairs (`patterns/pattern_attention/flex.py`).

A stream keeps all keys and values, since a pattern may reach back to the first, but reads only those that the
new queries see.

Lin, Wang, Liu, Qiu: A Survey of Transformers. AI Open 2022, arXiv:2106.04554, section 4.1, has the family.
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, State, Valid, Values
from subquad.ops.shared.packing import Packing
from subquad.ops.shared.precision import wide
from subquad.ops.shared.slots import KVCache, extend, reserve
from subquad.patterns import CAUSAL, Pattern, attend, attend_rows

STREAM_CHUNK = 128  # rows of a stream that are read at once


class SparseAttention(Mechanism):
    """Owns the running; a member of the family names its pattern, and writes its paper's sets as `pairs`."""

    zeros_padding = False

    def __init__(self, dims: Dims, *, causal: bool, pattern: Pattern) -> None:
        super().__init__(dims, causal=causal)
        if pattern.heads not in (None, dims.heads):
            raise ValueError(
                f"{self.traits.name!r}: {pattern!r} is for {pattern.heads} heads, not {dims.heads}; "
                "give a pattern for each head, or one for all"
            )
        self.pattern = pattern & CAUSAL if causal else pattern

    @abstractmethod
    def pairs(self, n: int) -> Bool[Tensor, "*heads {n} {n}"]:
        """Which keys each query sees in a sequence of n tokens, as the paper writes it: for `definition`."""

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding, all scores, and those of pairs outside the pattern masked."""
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            q_row, k_row, v_row = (x[row][:, real] for x in (q, k, v))
            scores = q_row @ k_row.mT / q.shape[-1] ** 0.5
            seen = self.pairs(scores.shape[-1]).to(q.device)
            out[row, :, real] = masked_softmax(scores, seen) @ v_row
        return out

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        return attend(self.pattern, q, k, v, valid=valid)

    def step(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        valid: Valid | None = None,
        state: State | None = None,
        in_place: bool = False,
    ) -> tuple[Outputs, State]:
        return self._stream(q, k, v, valid=valid, state=state, in_place=in_place)

    def reserve(self, state: State, tokens: int) -> State:
        return reserve(state, tokens) if isinstance(state, KVCache) else state

    def _stream(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: Any, in_place: bool
    ) -> tuple[Outputs, State]:
        """`step` of the causal form; a member with a pattern of short reach can keep less."""
        packing = Packing.of(valid, like=k)
        cache = extend(state, k, v, packing=packing, in_place=in_place)
        i = (cache.count - packing.count)[:, None] + torch.arange(q.shape[2], device=q.device)
        packed, known_k, known_v = wide(packing.pack(q), cache.k, cache.v)
        chunks = zip(packed.split(STREAM_CHUNK, 2), i.split(STREAM_CHUNK, 1), strict=True)
        outputs = [attend_rows(self.pattern, rows, known_k, known_v, i=at) for rows, at in chunks]
        return packing.unpack(torch.cat(outputs, 2)), cache


def masked_softmax(
    scores: Float[Tensor, "h t s"], seen: Bool[Tensor, "*heads t s"]
) -> Float[Tensor, "h t s"]:
    """The softmax of what is seen; zeros in a row that sees nothing."""
    lowest = torch.finfo(scores.dtype).min  # finite, so that a row without keys has gradients
    return scores.masked_fill(~seen, lowest).softmax(-1).masked_fill(~seen, 0)
