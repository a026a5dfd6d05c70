"""Local attention: each token sees its neighbours.

    S_i = {j : |i - j| <= w}            bidirectional
    S_i = {j : 0 <= i - j <= w}         causal

Dilated by delta, the window takes every delta-th neighbour and reaches delta times as far:

    S_i = {j : |i - j| <= w delta, i - j a multiple of delta}

Blocks of queries stand beside the blocks of keys around them, so that a sequence costs O(t w d). The causal
form streams with the last w delta keys and values, and forgets all others.

Parmar et al.: Image Transformer. ICML 2018, arXiv:1802.05751, section 3.1, as a window that slides token by
token: Beltagy, Peters, Cohan: Longformer, arXiv:2004.05150, section 3.1, whence the width. The window is open
on both sides by w, so that bidirectional attention sees 2 w + 1 keys and causal attention w + 1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.bounds import Count
from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.sparse import SparseAttention
from subquad.ops.attention import attention
from subquad.ops.shared.packing import Packing, take
from subquad.ops.shared.precision import wide
from subquad.ops.shared.scan import scan
from subquad.patterns import Dilated, Local

SMALLEST_CHUNK = 64  # tokens of a stream taken at once, even where the window is narrower


class WindowState(NamedTuple):
    """The last keys and values; those of a young stream stand at the right."""

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
    )

    def __init__(self, dims: Dims, *, causal: bool, width: Count = 256, dilation: Count = 1) -> None:
        pattern = Local(width) if dilation == 1 else Dilated(width, dilation)
        super().__init__(dims, causal=causal, pattern=pattern)
        self.dilation, self.span = dilation, width * dilation

    def pairs(self, n: int) -> Bool[Tensor, "{n} {n}"]:
        i, j = torch.arange(n)[:, None], torch.arange(n)
        in_window = ((i - j).abs() <= self.span) & ((i - j) % self.dilation == 0)
        return in_window & (j <= i) if self.causal else in_window

    def _stream(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: WindowState | None
    ) -> tuple[Outputs, WindowState]:
        return scan(self._chunk, q, k, v, valid=valid, state=state, chunk=max(self.span, SMALLEST_CHUNK))

    def _chunk(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: WindowState | None
    ) -> tuple[Outputs, WindowState]:
        packing, w = Packing.of(valid, like=k), self.span
        q, k, v = (packing.pack(x) for x in (q, k, v))
        seen = torch.zeros_like(packing.count)
        if state is None:
            before_k, before_v = (x.new_zeros(*x.shape[:2], w, x.shape[3]) for x in (k, v))
        else:
            before_k, before_v, seen = state
        k, v = torch.cat([before_k, k], 2), torch.cat([before_v, v], 2)
        j = torch.arange(k.shape[2], device=k.device)
        d = w + torch.arange(q.shape[2], device=q.device)[:, None] - j
        in_window = (d >= 0) & (d <= w) & (d % self.dilation == 0)
        in_window = in_window & (j >= w - seen[:, None, None])
        out = attention(*wide(q, k, v), seen=in_window[:, None])
        last = packing.count[:, None] + torch.arange(w, device=k.device)
        real = torch.ones_like(last, dtype=torch.bool)
        window = WindowState(take(k, last, real=real), take(v, last, real=real), seen + packing.count)
        return packing.unpack(out), window
