"""The Compressive Transformer: what leaves the memory is not forgotten but kept, c tokens to a slot.

A sequence is read in segments of l tokens. Behind a segment lie a memory of the M tokens before it and,
behind that, a compressed memory of C slots, each made of c older tokens. Token i attends to all three and
to its segment up to itself, at distances in slots, as Transformer-XL does to two:

    out_i = relative attention of q_i over [compressed; memory; segment up to i]

When a segment is full, its tokens enter the memory. The l oldest ones leave it, f_c makes l / c slots of
them, and as many of the oldest slots are dropped. So C slots reach C c tokens further back, for work that
is O(n (l + M + C) d), and what a stream keeps is bounded. `memories/compression.py` has the five kinds of
f_c, and `memories/short_term.py` the attention.

Two losses train f_c where it has weights (`memories/reconstruction.py`). The attention-reconstruction loss
asks of it that attention hardly notice it. It compares, for the queries of each segment, what they would
get from the tokens about to leave the memory, and from the slots made of them:

    penalty = weight * mean |attention(q, k, v) - attention(q, f_c(k), f_c(v))|^2

by content alone, unmasked, and with q, k and v held fixed, so that of all weights only those of f_c learn
from it. The auto-encoding loss asks that a decoder g can make the tokens again of their slots:

    penalty = weight * mean |(k, v) - g(f_c(k), f_c(v))|^2

so that f_c and g alone learn.

Rae, Potapenko, Jayakumar, Hillier, Lillicrap: Compressive Transformers for Long-Range Sequence Modelling.
ICLR 2020, arXiv:1911.05507, section 3. Sizes are those of the authors' model for PG-19, and the rate is
their best for WikiText-103. Where it departs:

- f_c works on keys and values, head by head, and not on the hidden states that the paper projects
  afterwards. For the mean and the most used that is the same, for projections are linear. A convolution here
  has weights of its own for keys and for values and mixes within a head, and the maximum is that of
  projected numbers.
- Convolutions begin as the mean, and the decoder, of whose form the paper says nothing, is one transposed.
- What the most-used tokens are is told by attention among tokens: slots take no part in it, so that all
  segments are compressed side by side. That is a second pass over the scores, without gradients.
- Segments count real tokens, each row by its own clock.

Gradients: the paper stops them at both memories, so that f_c learns from its loss alone, and the network
from the task alone. `detach=True` does this, whatever the calls; what makes keys and values then learns
from a segment's own queries, where the paper's, which remembers hidden states, also learns from later ones.
By default gradients flow through both memories as far as a call and its state reach, and into f_c too: it
learns from the task besides, as in the paper's variant by back-propagation through time.
"""

from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.bounds import Count, PositiveOrZero, one_of
from subquad.mechanism import Dims, Mechanism, Outputs, Queries, State, Traits, Valid
from subquad.memories.compression import (
    KINDS,
    Convolution,
    Decoder,
    Dilated,
    KeysOrValues,
    MostUsed,
    compressor,
)
from subquad.memories.literal import Row, relative_attention, relative_weights, row_by_row
from subquad.memories.reconstruction import attention_loss, encoding_loss
from subquad.memories.segments import Segments
from subquad.memories.short_term import CompressedSlots, RelativeAttention
from subquad.ops.shared.precision import wide
from subquad.ops.shared.transforms import lasting
from subquad.ops.shared.unused import unused

Compression = Annotated[str, one_of(*KINDS)]
Loss = Annotated[str, one_of("attention", "auto-encoding")]
Remembered = Float[Tensor, "b h _ _"]  # keys, values, or of each token one number more


class CompressiveState(NamedTuple):
    """What is remembered between chunks, all zeros before the first: keys and values side by side.

    Behind the values of tokens stands their use, where that decides which are kept.
    """

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
    compression: how a slot is made: "mean", "max", "convolution", "dilated" for dilated convolutions before
        that, or "most-used" for the tokens that were most attended to.
    loss: what teaches convolutions, "attention" for the attention-reconstruction loss, or "auto-encoding".
    weight: `penalty()` is this times the loss, which is there in training, where something learns from it,
        and zero otherwise.
    detach: whether neither memory gets a gradient from the segments that see it, nor f_c one from the task.

    Approximates causal softmax attention with relative positions: exact for the segment and the memory
    before it, by a slot for every `rate` tokens further back, and blind to what is older still. Where a
    sequence fits into a segment and its memory nothing is compressed, and it equals `transformer-xl`; it
    then equals plain softmax attention if, besides, u, v and W_R are zero.

    Not for sequences that a segment and its memory hold: there it is `transformer-xl`, with weights that
    nothing trains. Nor for recalling single old tokens exactly, which a slot has mixed with their
    neighbours, or of which it has kept one in `rate`. "most-used" makes scores twice. Neither it nor
    "dilated" is exported with a free length.
    """

    traits = Traits(
        name="compressive",
        paper="arXiv:1911.05507",
        family="memory",
        causal="strict",
        state="bounded",
        tiny={"segment": 4, "memory": 6, "compressed": 3, "rate": 2},
        lossless={"segment": 4, "memory": 20, "compressed": 3, "rate": 2},
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
        loss: Loss = "attention",
        weight: PositiveOrZero = 1.0,
        detach: bool = False,
    ) -> None:
        super().__init__(dims, causal=causal)
        for name, size in (("segment", segment), ("memory", memory)):
            if size % rate:
                raise ValueError(
                    f"'compressive': {name} must be a multiple of rate={rate}, so that no token is left "
                    f"over, not {size!r}: take {-(-size // rate) * rate}, or another rate"
                )
        self.segment, self.memory, self.compressed, self.rate = segment, memory, compressed, rate
        self.compression = compression
        self.weight, self.detach = weight, detach
        self.attention = RelativeAttention(dims.heads, dims.head_dim)
        self.f_c = compressor(
            compression,
            heads=dims.heads,
            head_dim=dims.head_dim,
            rate=rate,
            segment=segment,
            memory=memory,
        )
        learns = isinstance(self.f_c, Convolution)
        self.decoder = (
            Decoder(heads=dims.heads, head_dim=dims.head_dim, rate=rate)
            if learns and loss == "auto-encoding"
            else None
        )
        self._loss = torch.zeros((), device="cpu")

    def turned_inputs(self) -> tuple[str, ...]:
        return ()  # queries meet relative positions, and keys u

    def definition(self, q: Queries, k: Queries, v: Queries, *, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding: two queues, and a segment after the other."""
        return row_by_row(self._define, q, k, v, valid=valid)

    def _define(self, q: Row, k: Row, v: Row) -> Row:
        l, tokens, outputs = self.segment, torch.cat([k, v], -1), [q[:, :0]]
        compressed = memory = tokens[:, :0]
        received = asked = tokens[0, :0, 0]  # of each token in the memory: weights, and by how many queries
        for start in range(0, q.shape[1], l):
            if (excess := max(memory.shape[1] - self.memory, 0)) > 0:
                slots = self._compress(memory[:, :excess], use=(received / asked)[:excess])
                compressed = torch.cat([compressed, slots], 1)[:, -self.compressed :]
                memory, received, asked = memory[:, excess:], received[excess:], asked[excess:]
            if self.detach:
                compressed, memory = compressed.detach(), memory.detach()
            now = q[:, start : start + l]
            memory = torch.cat([memory, tokens[:, start : start + l]], 1)
            seen = torch.cat([compressed, memory], 1)
            reach = seen.shape[1]
            outputs.append(relative_attention(now, *seen.chunk(2, -1), weights=self.attention, reach=reach))
            weights = relative_weights(now, memory.chunk(2, -1)[0], weights=self.attention, reach=reach)
            received = F.pad(received, (0, now.shape[1])) + weights.detach().mean(0).sum(0)
            later = torch.arange(now.shape[1], 0, -1, dtype=asked.dtype, device=asked.device)
            asked = torch.cat([asked + now.shape[1], later])
        return torch.cat(outputs, 1)

    def _compress(self, old: Row, *, use: Float[Tensor, " t"]) -> Float[Tensor, "h _ c"]:
        """The slots of what leaves the memory together."""
        f_c, c, count = self.f_c, self.rate, old.shape[1] // self.rate
        if isinstance(f_c, MostUsed):
            return old[:, use.argsort(descending=True, stable=True)[:count].sort().values]
        if isinstance(f_c, Dilated):
            old = F.pad(old, (0, 0, self.segment - old.shape[1], 0))  # the memory begins as zeros
            old = torch.cat([self._hear(x, f_c, n) for n, x in enumerate(old.chunk(2, -1))], -1)
        groups = old[:, -c * count :].unflatten(1, (count, c))
        if isinstance(f_c, Convolution):
            parts = enumerate(groups.chunk(2, -1))
            slots = [torch.einsum("hgrd,hrde->hge", x, f_c.A[n]) + f_c.b[n][:, None] for n, x in parts]
            return torch.cat(slots, -1)
        return groups.mean(2) if self.compression == "mean" else groups.max(2).values

    def _hear(self, x: Row, f_c: Dilated, n: int) -> Row:
        """Torch's own dilated convolutions, head by head."""
        rows = []
        for head, z in enumerate(x.mT):
            for layer, s in enumerate(f_c.dilations):
                kernel, bias = f_c.B[layer, n, head].permute(2, 1, 0), f_c.bias[layer, n, head]
                z = z + F.gelu(F.conv1d(z, kernel, bias, padding=s, dilation=s))
            rows.append(z.mT)
        return torch.stack(rows)

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
        tokens = self._remembered(*wide(k, v))
        (q,), widths = wide(q), [x.shape[3] for x in tokens]
        memory = self._initial_state(*tokens) if state is None else state
        filled = None if state is None else state.filled
        segments = Segments.place(q, size=l, valid=valid, filled=filled)
        parts = zip(tokens, memory.past.split(widths, -1), memory.unfinished.split(widths, -1), strict=True)
        slots = [segments.slots(*part) for part in parts]
        preceding = segments.preceding(memory.num_held, per_segment=l // c)
        held, queries = c * preceding.clamp(max=m // c), segments.queries(q)
        if isinstance(self.f_c, MostUsed):
            given = self.attention.received(queries, slots[0], segments=segments, memory=m, num_held=held)
            slots[2] = slots[2] + given[..., None]
        compressed = self._slots(slots, segments, held=held)
        if state is not None or valid is not None:
            pairs = zip(memory.compressed.chunk(2, -1), compressed, strict=True)
            compressed = [torch.cat(pair, 2) for pair in pairs]
        mixed = self.attention(
            queries,
            *slots[:2],
            segments=segments,
            memory=m,
            num_held=held + (preceding - m // c).clamp(0, g),
            reach=g + m + l,
            detach=self.detach,
            compressed=CompressedSlots(*compressed, size=g, step=l // c),
        )
        self._loss = self._reconstruction(queries, slots[:2], segments, preceding)
        missing = segments.missing(m)
        carried = [segments.carry(x, width=m + l, stride=l, missing=missing) for x in slots]
        past, unfinished = torch.cat(carried, -1).split([m, l], 2)
        missing = segments.missing(g + m // c)
        carried = [segments.carry(x, width=g, stride=l // c, missing=missing) for x in compressed]
        num_held = (memory.num_held + l // c * segments.num_full()).clamp(max=m // c + g)
        state = CompressiveState(torch.cat(carried, -1), past, unfinished, segments.filled(), num_held)
        apart = [*(self.f_c.parameters() if self.detach else ()), *self._decoder_weights()]
        return segments.outputs(mixed + unused(*apart) if apart else mixed), state

    def _remembered(self, k: Queries, v: Queries) -> list[Remembered]:
        """What is kept of each token: its key, its value, and what attention it receives, if that matters."""
        return [k, v, torch.zeros_like(k[..., :1])] if isinstance(self.f_c, MostUsed) else [k, v]

    def _slots(
        self, slots: list[Remembered], segments: Segments, *, held: Int[Tensor, "b n"]
    ) -> list[KeysOrValues]:
        """The compressed keys and values of all that leaves the memory."""
        f_c, m = self.f_c, self.memory
        if f_c.block > self.rate and isinstance(segments.count, torch.SymInt):
            raise ValueError(
                f"'compressive' with compression={self.compression!r} compresses whole segments, and a graph "
                "for all lengths has none: export it with a fixed length, or run it as it is"
            )
        k, v, *use = (segments.evicted(x, memory=m, group=f_c.block) for x in slots)
        front = segments.missing(m) % f_c.block if k.shape[2] else 0  # zeros before the first token
        if isinstance(f_c, MostUsed):
            made = f_c(k, v, use=use[0], missing=m - held[:, 0] - segments.missing(m) + front)
        else:
            made = f_c(k, v)
        made = [x[:, :, front // self.rate :] for x in made]
        return [x.detach() for x in made] if self.detach else made

    def penalty(self) -> Float[Tensor, ""]:
        return self.weight * lasting(self._loss)

    def _initial_state(self, *tokens: Remembered) -> CompressiveState:
        """What is remembered before the first token."""
        (b, h, _, d), width = tokens[0].shape, sum(x.shape[3] for x in tokens)
        count = torch.zeros(b, dtype=torch.int64, device=tokens[0].device)
        compressed = tokens[0].new_zeros(b, h, self.compressed, 2 * d)
        past, unfinished = (tokens[0].new_zeros(b, h, n, width) for n in (self.memory, self.segment))
        return CompressiveState(compressed, past, unfinished, count, count)

    def _reconstruction(
        self,
        queries: KeysOrValues,
        slots: list[KeysOrValues],
        segments: Segments,
        preceding: Int[Tensor, "b n"],
    ) -> Float[Tensor, ""]:
        """What f_c is to learn from, for what leaves the memory when each segment is full."""
        f_c, m = self.f_c, self.memory
        if not (self.training and isinstance(f_c, Convolution) and self.weight):
            return queries.new_zeros(())
        if self.decoder is not None:
            return encoding_loss(f_c, self.decoder, slots, segments, preceding=preceding, memory=m)
        return attention_loss(f_c, queries, slots, segments, preceding=preceding, memory=m)

    def _decoder_weights(self) -> list[Tensor]:
        return [] if self.decoder is None else list(self.decoder.parameters())

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_loss": torch.zeros(())}  # its graph cannot be copied
