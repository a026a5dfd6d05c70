"""Local attention: each token sees its neighbours.

    S_i = {j : |i - j| <= w}            bidirectional
    S_i = {j : 0 <= i - j <= w}         causal

Dilated by delta, the window takes every delta-th neighbour and reaches delta times as far:

    S_i = {j : |i - j| <= w delta, i - j a multiple of delta}

Blocks of queries stand beside the blocks of keys around them, so that a sequence costs O(t w d). The causal
form streams with the last w delta + 1 keys and values, and forgets all others.

Parmar et al.: Image Transformer. ICML 2018, arXiv:1802.05751, section 3.1, as a window that slides token by
token: Beltagy, Peters, Cohan: Longformer, arXiv:2004.05150, section 3.1, whence the width. The window is open
on both sides by w, so that bidirectional attention sees 2 w + 1 keys and causal attention w + 1.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.bounds import Count
from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.sparse import SparseAttention
from subquad.ops.attention import attention
from subquad.ops.shared.neighbourhood import Neighbourhood
from subquad.ops.shared.packing import Packing, take
from subquad.ops.shared.precision import wide
from subquad.ops.shared.scan import scan
from subquad.ops.shared.slots import newest, write_slots
from subquad.patterns import Dilated, Local
from subquad.shards import Shards

SMALLEST_CHUNK = 64  # tokens of a stream taken at once, even where the window is narrower


class WindowState(NamedTuple):
    """The last keys and values, in rings: `newest(seen, w)` says which token stands in which slot."""

    k: Float[Tensor, "b h w d"]
    v: Float[Tensor, "b h w e"]
    seen: Int[Tensor, " b"]  # real tokens so far


class LocalAttention(SparseAttention):
    """Sees `width` tokens on either side, or before it in the causal form, and itself.

    width: w, tokens on one side; Longformer's 512 on both.
    dilation: delta; take every delta-th token, which reaches delta times as far with gaps between.

    Approximates softmax attention by its nearest keys, and equals it when the width is the sequence's length.
    Layers stack: after l of them a token has heard from l w tokens away.

    Not for single facts far away: what lies beyond the window is out of reach, however much it matters.
    """

    traits = Traits(
        name="local",
        paper="arXiv:1802.05751",
        family="sparse",
        bidirectional=True,
        causal="strict",
        state="bounded",
        normalised=True,
        limit={"width": 24},
        tiny={"width": 3, "dilation": 2},
        exchange="edges",
    )

    def __init__(self, dims: Dims, *, causal: bool, width: Count = 256, dilation: Count = 1) -> None:
        pattern = Local(width) if dilation == 1 else Dilated(width, dilation)
        super().__init__(dims, causal=causal, pattern=pattern)
        self.dilation, self.span = dilation, width * dilation

    def pairs(self, n: int) -> Bool[Tensor, "{n} {n}"]:
        i, j = torch.arange(n)[:, None], torch.arange(n)
        in_window = ((i - j).abs() <= self.span) & ((i - j) % self.dilation == 0)
        return in_window & (j <= i) if self.causal else in_window

    def sharded(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None, shards: Shards
    ) -> Outputs:
        around = Neighbourhood.of(k, v, valid, before=self.span, behind=not self.causal, shards=shards)
        return around.own(self(around.queries(q), around.k, around.v, valid=around.valid))

    def _stream(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: Any, in_place: bool
    ) -> tuple[Outputs, WindowState]:
        if state is None:
            shape = *k.shape[:2], self.span + 1
            ring_k, ring_v = (x.new_zeros(*shape, x.shape[3]) for x in (k, v))
            state = WindowState(ring_k, ring_v, torch.zeros(len(k), dtype=torch.int64, device=k.device))
        if q.shape[2] == 1:
            return self._token(q, k, v, valid=valid, state=state, in_place=in_place)
        return scan(self._chunk, q, k, v, valid=valid, state=state, chunk=max(self.span, SMALLEST_CHUNK))

    def _token(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: WindowState, in_place: bool
    ) -> tuple[Outputs, WindowState]:
        """One token: it takes the place of the oldest, and sees the ring."""
        packing, size = Packing.of(valid, like=k), state.k.shape[2]
        q, k, v = (packing.pack(x) for x in (q, k, v))
        slot, seen = (state.seen % size)[:, None], state.seen + packing.count
        # at padding zeros take that place, which the next token takes from them
        ring_k, ring_v = (x if in_place else x.clone() for x in (state.k, state.v))
        ring_k, ring_v = write_slots(ring_k, k, slot), write_slots(ring_v, v, slot)
        i, j = seen - 1, newest(seen, size)
        out = attention(q, ring_k, ring_v, seen=self._sees(i[:, None, None], j[:, None])[:, None])
        return packing.unpack(out), WindowState(ring_k, ring_v, seen)

    def _chunk(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: WindowState
    ) -> tuple[Outputs, WindowState]:
        packing, size = Packing.of(valid, like=k), state.k.shape[2]
        q, k, v = (packing.pack(x) for x in (q, k, v))
        known_k, known_v = torch.cat([state.k, k], 2), torch.cat([state.v, v], 2)
        i = state.seen[:, None] + torch.arange(q.shape[2], device=q.device)
        j = torch.cat([newest(state.seen, size), i], 1)
        out = attention(*wide(q, known_k, known_v), seen=self._sees(i[..., None], j[:, None])[:, None])
        seen = state.seen + packing.count
        j = newest(seen, size)
        new = j - state.seen[:, None]
        source = torch.where(new < 0, torch.arange(size, device=j.device), size + new)
        real = torch.ones_like(source, dtype=torch.bool)
        return packing.unpack(out), WindowState(
            take(known_k, source, real=real), take(known_v, source, real=real), seen
        )

    def _sees(self, i: Int[Tensor, "b t 1"], j: Int[Tensor, "b 1 s"]) -> Bool[Tensor, "b t s"]:
        """Whether token i sees token j, which is none below 0."""
        d = i - j
        in_window = (j >= 0) & (d >= 0) & (d <= self.span)
        return in_window if self.dilation == 1 else in_window & (d % self.dilation == 0)
