"""Attention sinks: a sliding window, and the first tokens of the stream, which stay in sight for good.

    out_i = sum_{j in S_i} softmax_j(q_i . k_j / sqrt(d)) v_j,    S_i = {j <= i : j < g or i - j <= w}

A softmax has to put its weights somewhere, and trained models put those that they have no use for on the
first tokens, whatever these say. Where a window leaves them behind the model fails at once. With g of them in
sight it goes on without end, on a cache of g + w + 1 keys. Work is O(t (g + w) d).

Instead of such tokens, or besides, each head may learn a logit s that takes weights and gives nothing:

    out_i = sum_{j in S_i} exp(q_i . k_j / sqrt(d)) v_j / (e^s + sum_{j in S_i} exp(q_i . k_j / sqrt(d)))

The window comes with the logarithm of its sum, so that this is a softmax of g + 2 scores: the window as a
whole, each sink that lies behind it, and s.

Xiao, Tian, Chen, Han, Lewis: Efficient Streaming Language Models with Attention Sinks. ICLR 2024,
arXiv:2309.17453, section 3.2; four sinks are theirs. The logit is that of gpt-oss (OpenAI, 2025). Where this
departs:

- The paper counts positions within the cache, so that a sink is never further away than the cache is long. A
  layer here turns queries and keys by their positions in the stream before it hands them over, and sinks move
  away from the window. Without rotary positions there is no difference.
- The windows of gpt-oss, and the recent tokens of the paper's cache, count the token itself. Here, as in
  `local`, there are w before it.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from subquad.bounds import Count, CountOrZero
from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.sparse import SparseAttention
from subquad.ops.shared.masked_softmax import masked_softmax
from subquad.ops.shared.neighbourhood import Neighbourhood
from subquad.ops.shared.packing import Packing, take
from subquad.ops.shared.precision import wide
from subquad.ops.shared.scan import scan
from subquad.ops.shared.slots import newest, write_slots
from subquad.ops.window_attention import window_attention
from subquad.patterns import Columns, Local
from subquad.shards import Shards

STREAM_CHUNK = 64  # tokens of a stream taken at once, even where the window is narrower


class SinkState(NamedTuple):
    """The first g keys and values, and behind them the last w + 1 in a ring."""

    k: Float[Tensor, "b h gw d"]
    v: Float[Tensor, "b h gw e"]
    seen: Int[Tensor, " b"]  # real tokens so far


class SinkAttention(SparseAttention):
    """Sees itself, `width` tokens before it, and the first `sinks` tokens.

    width: w, tokens before a token that it sees.
    sinks: g, how many of the first tokens everyone sees; with 0 of them it is `local`.
    learnt: whether each head has a logit s in its denominator besides. Weights then sum to less than one.

    Approximates softmax attention by its nearest and its first keys, and equals it when the width is the
    sequence's length and there is no logit.

    Not for facts far away: as with `local`, what has left the window is out of reach, and the sinks say what
    the first tokens said and no more. Not for encoders, which need no cache; `longformer` has global tokens
    that see as well as they are seen.
    """

    s: nn.Parameter | None

    traits = Traits(
        name="sinks",
        paper="arXiv:2309.17453",
        family="sparse",
        causal="strict",
        state="bounded",
        normalised=True,  # unless the logit is learnt
        limit={"width": 24},
        tiny={"width": 3, "sinks": 2},
        exchange="edges",
    )

    def __init__(
        self, dims: Dims, *, causal: bool, width: Count = 256, sinks: CountOrZero = 4, learnt: bool = False
    ) -> None:
        super().__init__(
            dims, causal=causal, pattern=Local(width) | Columns(sinks) if sinks else Local(width)
        )
        self.width, self.sinks = width, sinks
        self.register_parameter("s", nn.Parameter(torch.zeros(dims.heads)) if learnt else None)

    def pairs(self, n: int) -> Bool[Tensor, "{n} {n}"]:
        i, j = torch.arange(n)[:, None], torch.arange(n)
        return (j <= i) & ((j < self.sinks) | (i - j <= self.width))

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding, all scores, and those outside S masked."""
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            q_row, k_row, v_row = (x[row][:, real] for x in (q, k, v))
            n = q_row.shape[1]
            scores = q_row @ k_row.mT / q.shape[-1] ** 0.5
            scores = scores.masked_fill(~self.pairs(n).to(q.device), -torch.inf)
            if self.s is not None:
                scores = torch.cat([scores, self.s[:, None, None].expand(-1, n, 1)], -1)
            out[row, :, real] = scores.softmax(-1)[..., :n] @ v_row
        return out

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        if self.s is None:
            return super().forward(q, k, v, valid=valid)
        packing = Packing.of(valid, like=k)
        q, k, v = (packing.pack(x) for x in (q, k, v))
        lengths = None if valid is None else packing.count
        window, lse = window_attention(q, k, v, left=self.width, right=0, lengths=lengths)
        q, window = wide(q, window)
        first_k, first_v = wide(*(first_tokens(x, self.sinks) for x in (k, v)))
        i, j = (torch.arange(n, device=q.device) for n in (q.shape[2], first_k.shape[2]))
        behind = (j < i[:, None] - self.width).expand(q.shape[0], 1, -1, -1)
        real = i[:, None] < packing.count[:, None, None, None]
        scores = torch.cat([lse[..., None], q @ first_k.mT / q.shape[-1] ** 0.5], -1)
        weights = self._softmax(scores, seen=torch.cat([real, behind], -1))
        return packing.unpack(weights[..., :1] * window + weights[..., 1:] @ first_v)

    def sharded(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None, shards: Shards
    ) -> Outputs:
        around = Neighbourhood.of(k, v, valid, before=self.width, behind=False, shards=shards)
        if self.sinks:
            around = around.with_first(k, v, valid, count=self.sinks, shards=shards)
        return around.own(self(around.queries(q), around.k, around.v, valid=around.valid))

    def _softmax(
        self, scores: Float[Tensor, "b h t s"], *, seen: Bool[Tensor, "b 1 t s"]
    ) -> Float[Tensor, "b h t s"]:
        """The weights of what is seen, beside the logit if there is one."""
        if self.s is None:
            return masked_softmax(scores, seen=seen)
        logit = self.s.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        seen = torch.cat([seen, torch.ones_like(seen[..., :1])], -1)
        return masked_softmax(torch.cat([scores, logit], -1), seen=seen)[..., :-1]

    def _stream(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: Any, in_place: bool
    ) -> tuple[Outputs, SinkState]:
        if state is None:
            shape = *k.shape[:2], self.sinks + self.width + 1
            slots_k, slots_v = (x.new_zeros(*shape, x.shape[3]) for x in (k, v))
            state = SinkState(slots_k, slots_v, torch.zeros(len(k), dtype=torch.int64, device=k.device))
        if q.shape[2] == 1:
            return self._token(q, k, v, valid=valid, state=state, in_place=in_place)
        return scan(self._chunk, q, k, v, valid=valid, state=state, chunk=max(self.width, STREAM_CHUNK))

    def _token(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: SinkState, in_place: bool
    ) -> tuple[Outputs, SinkState]:
        """One token: it takes a place that is free, or that of the oldest in the ring."""
        packing = Packing.of(valid, like=k)
        q, k, v = (packing.pack(x) for x in (q, k, v))
        i, seen, ring = state.seen, state.seen + packing.count, self.width + 1
        slot = torch.where(i < self.sinks, i, self.sinks + (i - self.sinks) % ring)[:, None]
        # at padding zeros take that place, which the next token takes from them
        slots_k, slots_v = (x if in_place else x.clone() for x in (state.k, state.v))
        slots_k, slots_v = write_slots(slots_k, k, slot), write_slots(slots_v, v, slot)
        out = self._mix(q, slots_k, slots_v, i=seen[:, None] - 1, j=self._held(seen))
        return packing.unpack(out), SinkState(slots_k, slots_v, seen)

    def _chunk(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: SinkState
    ) -> tuple[Outputs, SinkState]:
        packing, size = Packing.of(valid, like=k), state.k.shape[2]
        q, k, v = (packing.pack(x) for x in (q, k, v))
        known_k, known_v = torch.cat([state.k, k], 2), torch.cat([state.v, v], 2)
        i = state.seen[:, None] + torch.arange(q.shape[2], device=q.device)
        out = self._mix(q, known_k, known_v, i=i, j=torch.cat([self._held(state.seen), i], 1))
        seen = state.seen + packing.count
        new = self._held(seen) - state.seen[:, None]
        source = torch.where(new < 0, torch.arange(size, device=q.device), size + new)
        real = torch.ones_like(source, dtype=torch.bool)
        return packing.unpack(out), SinkState(
            take(known_k, source, real=real), take(known_v, source, real=real), seen
        )

    def _held(self, seen: Int[Tensor, " b"]) -> Int[Tensor, "b gw"]:
        """Which of `seen` tokens stands in each slot; below 0: none as yet."""
        first = torch.arange(self.sinks, device=seen.device).expand(len(seen), -1)
        ring = newest(seen - self.sinks, self.width + 1)
        return torch.cat(
            [first.masked_fill(first >= seen[:, None], -1), (ring + self.sinks).masked_fill(ring < 0, -1)], 1
        )

    def _mix(
        self, q: Queries, k: Keys, v: Values, *, i: Int[Tensor, "b t"], j: Int[Tensor, "b s"]
    ) -> Outputs:
        """What tokens i get from keys of tokens j, of which there are none below 0."""
        q, k, v = wide(q, k, v)
        i, j = i[:, None, :, None], j[:, None, None]
        seen = (j >= 0) & (j <= i) & ((j < self.sinks) | (i - j <= self.width))
        return self._softmax(q @ k.mT / q.shape[-1] ** 0.5, seen=seen) @ v


def first_tokens(x: Float[Tensor, "b h s c"], count: int) -> Float[Tensor, "b h g c"]:
    """The first `count`, or as many as there are; in a graph, which is for any length, some twice."""
    if not torch.compiler.is_compiling():
        return x[:, :, :count]
    return x.index_select(2, torch.arange(count, device=x.device).clamp(max=x.shape[2] - 1))
