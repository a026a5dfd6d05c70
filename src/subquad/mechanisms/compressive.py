"""The Compressive Transformer: what leaves the memory is not forgotten but kept, c tokens to a slot.

A sequence is read in segments of l tokens. Behind a segment lie a memory of the M tokens before it and,
behind that, a compressed memory of C slots, each made of c older tokens. Token i attends to all three and
to its segment up to itself, at distances in slots, as Transformer-XL does to two:

    out_i = relative attention of q_i over [compressed; memory; segment up to i]

When a segment is full, its tokens enter the memory. The l oldest ones leave it, f_c makes l / c slots of
them, and as many of the oldest slots are dropped. So C slots reach C c tokens further back, for work that
is O(n (l + M + C) d), and what a stream keeps is bounded. `memories/compression.py` has f_c, and
`memories/short_term.py` the attention.

The attention-reconstruction loss asks of f_c that attention hardly notice it. It compares, for the queries
of each segment, what they would get from the tokens about to leave the memory, and from the slots made of
them:

    penalty = weight * mean |attention(q, k, v) - attention(q, f_c(k), f_c(v))|^2

by content alone, unmasked, and with q, k and v held fixed, so that of all weights only those of f_c learn
from it.

Rae, Potapenko, Jayakumar, Hillier, Lillicrap: Compressive Transformers for Long-Range Sequence Modelling.
ICLR 2020, arXiv:1911.05507, section 3. Sizes are those of the authors' model for PG-19, and the rate is
their best for WikiText-103. Where it departs:

- f_c works on keys and values, head by head, and not on the hidden states that the paper projects
  afterwards. For the mean that is the same, for projections are linear. A convolution here has weights of
  its own for keys and for values and mixes within a head, and the maximum is that of projected numbers.
- Gradients flow through both memories within one call, into f_c too, so it also learns from the task. The
  paper stops them, and f_c learns from its loss alone. Detach the state to stop them between calls.
- The convolution begins as the mean.
- Dilated convolutions, most-used memories and the auto-encoding loss are left out; none did better in the
  paper than a convolution with this loss.
- Segments count real tokens, each row by its own clock.
"""

from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.bounds import Count, PositiveOrZero, one_of
from subquad.mechanism import Dims, Mechanism, Outputs, Queries, State, Traits, Valid
from subquad.memories.compression import KINDS, Convolution, compressor
from subquad.memories.literal import Row, relative_attention, row_by_row
from subquad.memories.segments import Segments, as_batch, windows
from subquad.memories.short_term import CompressedSlots, RelativeAttention
from subquad.ops.attention import attention
from subquad.ops.shared.precision import wide
from subquad.ops.shared.transforms import lasting

Compression = Annotated[str, one_of(*KINDS)]
SlotsOrTokens = Float[Tensor, "b h _ c"]


class CompressiveState(NamedTuple):
    """What is remembered between chunks, keys and values side by side; all zeros before the first."""

    compressed: Float[Tensor, "b h g c"]  # slots made of what left the memory, the latest last
    past: Float[Tensor, "b h m c"]  # the tokens before the unfinished segment, the latest last
    unfinished: Float[Tensor, "b h l c"]  # the segment being filled; zeros in its free slots
    filled: Int[Tensor, " b"]  # tokens in the unfinished segment
    num_held: Int[Tensor, " b"]  # how often `rate` tokens are in the past, or a slot in the compressed memory


class CompressiveAttention(Mechanism):
    """Relative attention to one's own segment, to a memory of tokens, and to one of compressed tokens.

    segment: tokens per segment, a multiple of `rate`.
    memory: tokens before the segment that are kept as they are, a multiple of `rate`.
    compressed: slots for older tokens.
    rate: tokens to a slot.
    compression: how a slot is made, "convolution", "mean" or "max".
    weight: `penalty()` is this times the attention-reconstruction loss, which is there in training, where a
        convolution learns from it, and zero otherwise.

    Approximates causal softmax attention with relative positions: exact for the segment and the memory
    before it, by a slot for every `rate` tokens further back, and blind to what is older still. Where a
    sequence fits into a segment and its memory nothing is compressed, and it equals `transformer-xl`; it
    then equals plain softmax attention if, besides, u, v and W_R are zero.

    Not for sequences that a segment and its memory hold: there it is `transformer-xl`, with weights that
    nothing trains. Nor for recalling single old tokens exactly, which a slot has mixed with their
    neighbours.
    """

    traits = Traits(
        name="compressive",
        paper="arXiv:1911.05507",
        family="memory",
        causal="strict",
        state="bounded",
        tiny={"segment": 4, "memory": 6, "compressed": 3, "rate": 2},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        segment: Count = 512,
        memory: Count = 512,
        compressed: Count = 512,
        rate: Count = 4,
        compression: Compression = "convolution",
        weight: PositiveOrZero = 1.0,
    ) -> None:
        super().__init__(dims, causal=causal)
        for name, size in (("segment", segment), ("memory", memory)):
            if size % rate:
                raise ValueError(
                    f"'compressive': {name} must be a multiple of rate={rate}, so that no token is left "
                    f"over, not {size!r}: take {-(-size // rate) * rate}, or another rate"
                )
        self.segment, self.memory, self.compressed, self.rate = segment, memory, compressed, rate
        self.weight = weight
        self.attention = RelativeAttention(dims.heads, dims.head_dim)
        self.f_c = compressor(compression, heads=dims.heads, head_dim=dims.head_dim, rate=rate)
        self._loss = torch.zeros((), device="cpu")

    def definition(self, q: Queries, k: Queries, v: Queries, *, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding: two queues, and a segment after the other."""
        return row_by_row(self._define, q, k, v, valid=valid)

    def _define(self, q: Row, k: Row, v: Row) -> Row:
        tokens, outputs = torch.cat([k, v], -1), [q[:, :0]]
        compressed = memory = tokens[:, :0]
        for start in range(0, q.shape[1], self.segment):
            excess = max(memory.shape[1] - self.memory, 0)
            old, memory = memory[:, :excess], memory[:, excess:]
            for first in range(0, excess, self.rate):
                slot = self._compress(*old[:, first : first + self.rate].chunk(2, -1))
                compressed = torch.cat([compressed, slot], 1)[:, -self.compressed :]
            now = slice(start, start + self.segment)
            memory = torch.cat([memory, tokens[:, now]], 1)
            seen = torch.cat([compressed, memory], 1)
            outputs.append(
                relative_attention(q[:, now], *seen.chunk(2, -1), weights=self.attention, reach=seen.shape[1])
            )
        return torch.cat(outputs, 1)

    def _compress(self, *k_and_v: Row) -> Float[Tensor, "h 1 c"]:
        """One slot."""
        if isinstance(self.f_c, Convolution):
            A, b = self.f_c.A, self.f_c.b
            slot = [torch.einsum("hrd,hrde->he", x, A[n]) + b[n] for n, x in enumerate(k_and_v)]
        else:
            slot = [x.mean(1) if self.f_c.kind == "mean" else x.max(1).values for x in k_and_v]
        return torch.cat(slot, -1)[:, None]

    def forward(self, q: Queries, k: Queries, v: Queries, *, valid: Valid | None = None) -> Outputs:
        return self._run(q, k, v, valid=valid, state=None)[0]

    def step(
        self, q: Queries, k: Queries, v: Queries, *, valid: Valid | None = None, state: State | None = None
    ) -> tuple[Outputs, State]:
        return self._run(q, k, v, valid=valid, state=state)

    def _run(
        self, q: Queries, k: Queries, v: Queries, *, valid: Valid | None, state: CompressiveState | None
    ) -> tuple[Outputs, CompressiveState]:
        l, m, g, c = self.segment, self.memory, self.compressed, self.rate
        q, k, v = wide(q, k, v)
        memory = self._initial_state(k, v) if state is None else state
        filled = None if state is None else state.filled
        segments = Segments.place(q, size=l, valid=valid, filled=filled)
        parts = zip((k, v), memory.past.chunk(2, -1), memory.unfinished.chunk(2, -1), strict=True)
        slots = [segments.slots(*part) for part in parts]
        compressed = self.f_c(*(segments.evicted(x, memory=m, group=c) for x in slots))
        if state is not None or valid is not None:
            pairs = zip(memory.compressed.chunk(2, -1), compressed, strict=True)
            compressed = [torch.cat(pair, 2) for pair in pairs]
        preceding = segments.preceding(memory.num_held, per_segment=l // c)
        queries = segments.queries(q)
        mixed = self.attention(
            queries,
            *slots,
            segments=segments,
            memory=m,
            num_held=c * preceding.clamp(max=m // c) + (preceding - m // c).clamp(0, g),
            reach=g + m + l,
            compressed=CompressedSlots(*compressed, size=g, step=l // c),
        )
        self._loss = self._reconstruction(queries, slots, segments, preceding)
        missing = segments.missing(m)
        carried = [segments.carry(x, width=m + l, stride=l, missing=missing) for x in slots]
        past, unfinished = torch.cat(carried, -1).split([m, l], 2)
        missing = segments.missing(g + m // c)
        carried = [segments.carry(x, width=g, stride=l // c, missing=missing) for x in compressed]
        num_held = (memory.num_held + l // c * segments.num_full()).clamp(max=m // c + g)
        state = CompressiveState(torch.cat(carried, -1), past, unfinished, segments.filled(), num_held)
        return segments.outputs(mixed), state

    def penalty(self) -> Float[Tensor, ""]:
        return self.weight * lasting(self._loss)

    def _initial_state(self, k: Queries, v: Queries) -> CompressiveState:
        """What is remembered before the first token."""
        b, h, _, d = k.shape
        count = torch.zeros(b, dtype=torch.int64, device=k.device)
        sizes = (self.compressed, self.memory, self.segment)
        compressed, past, unfinished = (v.new_zeros(b, h, size, 2 * d) for size in sizes)
        return CompressiveState(compressed, past, unfinished, count, count)

    def _reconstruction(
        self,
        queries: SlotsOrTokens,
        slots: list[SlotsOrTokens],
        segments: Segments,
        preceding: Int[Tensor, "b n"],
    ) -> Float[Tensor, ""]:
        """The attention-reconstruction loss, for what leaves the memory when each segment is full."""
        l, m, c = self.segment, self.memory, self.rate
        evicted = min(l, m)  # tokens, when a segment is full
        first = (m - evicted) // l + 1 if segments.new else 0  # before that there is nothing to evict
        count = segments.count - first
        if not (self.training and isinstance(self.f_c, Convolution) and self.weight and count > 0):
            return queries.new_zeros(())
        slots = [F.pad(x.detach(), (0, 0, segments.missing(m), 0)) for x in slots]
        old = [windows(x, count=segments.count, width=evicted, stride=l)[:, :, first:] for x in slots]
        new = [x.unflatten(2, (count, evicted // c)) for x in self.f_c(*(x.flatten(2, 3) for x in old))]
        there = torch.arange(evicted, device=preceding.device) >= m - c * preceding[:, first:, None]
        some = there.any(-1, keepdim=True)
        seen = (there | ~some).flatten(0, 1)[:, None, None]
        queries = F.pad(queries.detach(), (0, 0, 0, segments.count * segments.width - queries.shape[2]))
        q = as_batch(queries.unflatten(2, (segments.count, segments.width))[:, :, first:])
        old_mixed, new_mixed = (
            attention(q, *(as_batch(y) for y in x), seen=seen[..., ::step])
            for x, step in ((old, 1), (new, c))
        )
        readers = segments.real()[:, first:] & some
        error = (old_mixed - new_mixed).square().mean(-1).masked_fill(~readers.flatten(0, 1)[:, None], 0)
        return error.sum() / (readers.sum() * self.dims.heads).clamp(min=1)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_loss": torch.zeros(())}  # its graph cannot be copied
