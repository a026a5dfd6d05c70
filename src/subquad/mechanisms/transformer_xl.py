"""Transformer-XL: attention within segments that remembers the tokens before them.

A sequence is read in segments of l tokens. Token i, whose segment begins at b = l floor(i / l), attends to
the M tokens before its segment and to its segment up to itself, by content and by distance:

    out_i = sum_j softmax_j(a_ij) v_j  over  b - M <= j <= i
    a_ij  = ((q_i + u) . k_j + (q_i + v) . W_R r_(i-j)) / sqrt(d),    r_n: sines and cosines of n

A layer reaches M tokens back, a stack of L layers L M. Work is O(n (l + M) d), and a stream keeps the last
M tokens and the unfinished segment. `ops/relative_attention` says how distances become a product.

Dai, Yang, Yang, Carbonell, Le, Salakhutdinov: Transformer-XL: Attentive Language Models Beyond a
Fixed-Length Context. ACL 2019, arXiv:1901.02860, sections 3.2 and 3.3. Defaults are those of the authors'
base model for WikiText-103. Where it departs:

- u, v and W_R belong to the layer, as with the authors' option `untie_r`, and W_R r_n is as wide as a head.
- Keys and values are remembered, which the paper makes anew, with the same weights, of remembered hidden
  states.
- Segments count real tokens, each row by its own clock.
- Distances are not clamped (the authors' `clamp_len`), and evaluation has the memory of training.

Gradients: the paper stops them at the remembered hidden states, which `detach=True` does at the remembered
keys and values, whatever the calls: the gradients are those of a call for each segment whose state is
detached. What makes keys and values then learns from a segment's own queries alone, where the paper's also
learns from later ones. By default gradients flow into the memory as far as a call and its state reach.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.bounds import Count, CountOrZero
from subquad.mechanism import Dims, Mechanism, Outputs, Queries, State, Traits, Valid
from subquad.memories.literal import Row, relative_attention, row_by_row, seen
from subquad.memories.segments import Segments
from subquad.memories.short_term import RelativeAttention
from subquad.ops.shared.precision import wide


class TransformerXLState(NamedTuple):
    """What is remembered between chunks, keys and values side by side; all zeros before the first."""

    past: Float[Tensor, "b h m c"]  # the tokens before the unfinished segment, the latest last
    unfinished: Float[Tensor, "b h l c"]  # the segment being filled; zeros in its free slots
    filled: Int[Tensor, " b"]  # tokens in the unfinished segment
    num_held: Int[Tensor, " b"]  # tokens in the past


class TransformerXL(Mechanism):
    """Relative attention to one's own segment and to the tokens remembered before it.

    segment: tokens per segment.
    memory: how many tokens before its segment a token sees; it may be more or less than a segment, or none.
    same_length: whether every token sees itself and the `memory` - 1 tokens before it, a sliding window,
        wherever it stands in its segment.
    detach: whether the memory gets no gradient from the segments that see it.

    Approximates causal softmax attention with relative positions by leaving out what is older than the
    memory; where the sequence fits into one segment and the memory before it, nothing is left out. It
    equals plain softmax attention when, besides, u, v and W_R are zero.

    Not for reading in both directions, and not for what lies further back than the memory times the layers
    of the network: nothing of it is left. `compressive` and `infinity` keep something.
    """

    traits = Traits(
        name="transformer-xl",
        paper="arXiv:1901.02860",
        family="memory",
        causal="strict",
        state="bounded",
        normalised=True,
        tiny={"segment": 5, "memory": 7},
        lossless={"segment": 5, "memory": 20},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        segment: Count = 150,
        memory: CountOrZero = 150,
        same_length: bool = False,
        detach: bool = False,
    ) -> None:
        super().__init__(dims, causal=causal)
        if same_length and memory < 1:
            raise ValueError(
                f"'transformer-xl': same_length=True shows every token `memory` keys, itself among them: "
                f"memory must be at least 1, not {memory!r}"
            )
        self.segment, self.memory, self.detach = segment, memory, detach
        self.reach = memory if same_length else memory + segment
        self.attention = RelativeAttention(dims.heads, dims.head_dim)

    def turned_inputs(self) -> tuple[str, ...]:
        return ()  # queries meet relative positions, and keys u

    def definition(self, q: Queries, k: Queries, v: Queries, *, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding, segment by segment, with a vector for every distance."""
        return row_by_row(self._define, q, k, v, valid=valid)

    def _define(self, q: Row, k: Row, v: Row) -> Row:
        l, m, outputs = self.segment, self.memory, [q[:, :0]]
        for start in range(0, q.shape[1], l):
            keys, values = (seen(x, start, memory=m, segment=l, detach=self.detach) for x in (k, v))
            now = q[:, start : start + l]
            outputs.append(relative_attention(now, keys, values, weights=self.attention, reach=self.reach))
        return torch.cat(outputs, 1)

    def forward(self, q: Queries, k: Queries, v: Queries, *, valid: Valid | None = None) -> Outputs:
        return self._run(q, k, v, valid=valid, state=None)[0]

    def step(
        self, q: Queries, k: Queries, v: Queries, *, valid: Valid | None = None, state: State | None = None
    ) -> tuple[Outputs, State]:
        return self._run(q, k, v, valid=valid, state=state)

    def _run(
        self, q: Queries, k: Queries, v: Queries, *, valid: Valid | None, state: TransformerXLState | None
    ) -> tuple[Outputs, TransformerXLState]:
        l, m = self.segment, self.memory
        q, k, v = wide(q, k, v)
        memory = self._initial_state(k, v) if state is None else state
        filled = None if state is None else state.filled
        segments = Segments.place(q, size=l, valid=valid, filled=filled)
        parts = zip((k, v), memory.past.chunk(2, -1), memory.unfinished.chunk(2, -1), strict=True)
        slots = [segments.slots(*part) for part in parts]
        mixed = self.attention(
            segments.queries(q),
            *slots,
            segments=segments,
            memory=m,
            num_held=segments.preceding(memory.num_held, per_segment=l).clamp(max=m),
            reach=self.reach,
            detach=self.detach,
        )
        missing = segments.missing(m)
        carried = [segments.carry(x, width=m + l, stride=l, missing=missing) for x in slots]
        past, unfinished = torch.cat(carried, -1).split([m, l], 2)
        num_held = (memory.num_held + l * segments.num_full()).clamp(max=m)
        return segments.outputs(mixed), TransformerXLState(past, unfinished, segments.filled(), num_held)

    def _initial_state(self, k: Queries, v: Queries) -> TransformerXLState:
        """What is remembered before the first token."""
        b, h, _, d = k.shape
        count = torch.zeros(b, dtype=torch.int64, device=k.device)
        past, unfinished = (v.new_zeros(b, h, size, 2 * d) for size in (self.memory, self.segment))
        return TransformerXLState(past, unfinished, count, count)
