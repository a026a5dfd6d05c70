"""Transformer-XL's short-term memory: attention with relative positions beyond one's own segment.

Each token sees the tokens remembered before its segment, and its segment up to itself, at distances i - j:

    a_ij = ((q_i + u) . k_j + (q_i + v) . W_R r_(i-j)) / sqrt(d),    out_i = sum_j softmax_j(a_ij) v_j
    r_n = (sin(n w_m), cos(n w_m))_m,    w_m = 10000^(-m / (d/2)),    m = 0 .. d/2 - 1

`ops/relative_attention` says how it is computed.

Dai et al.: Transformer-XL. ACL 2019, arXiv:1901.02860, section 3.3. Departs from the paper in the width of
r_n, a head's and not the model's, so that the product stays narrow; gradients flow into what came before,
unless that is detached.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.memories.segments import Segments, windows
from subquad.ops.relative_attention import Layout, Slots, Weights, attention_received, relative_attention


class CompressedSlots(NamedTuple):
    """Slots for what is older than the memory: `size` to a segment, `step` after those of the one before."""

    k: Float[Tensor, "b h g d"]
    v: Float[Tensor, "b h g d"]
    size: int
    step: int


class RelativeAttention(nn.Module):
    """Softmax attention with the content bias u, the position bias v and the position weights W_R."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        width = head_dim + head_dim % 2  # sines and cosines come in pairs
        self.u = nn.Parameter(torch.empty(heads, head_dim))
        self.v = nn.Parameter(torch.empty(heads, head_dim))
        self.W_R = nn.Parameter(torch.empty(heads, width, head_dim))
        for parameter in (self.u, self.v):
            nn.init.normal_(parameter, std=0.02)  # as in the authors' code
        nn.init.normal_(self.W_R, std=width**-0.5)

    def forward(
        self,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h s d"],
        v: Float[Tensor, "b h s d"],
        *,
        segments: Segments,
        memory: int,
        num_held: Int[Tensor, "b n"],
        reach: int,
        detach: bool,
        compressed: CompressedSlots | None = None,
    ) -> Float[Tensor, "b h t d"]:
        """The outputs of the segments' queries, from slots of keys and values.

        memory: slots before each segment that its queries see; the `compressed` ones come before these.
        num_held: how many of both hold something, the latest.
        reach: a query sees itself and what is less than so many slots before it.
        detach: whether what comes before a segment gets no gradient from its queries.
        """
        size, step = (0, 0) if compressed is None else compressed[2:]
        missing_compressed = segments.missing(size + memory * step // segments.size)
        if detach and size + memory and torch.is_grad_enabled():
            compressed = detached(k, v, compressed, segments=segments, memory=memory)
            k, v = (x[:, :, memory - segments.missing(memory) :] for x in (k, v))
            size = step = compressed.size
            memory = missing_compressed = 0
        layout = Layout(
            size=segments.size,
            queries=segments.width,
            memory=memory,
            reach=reach,
            missing=segments.missing(memory),
            compressed=size,
            step=step,
            missing_compressed=missing_compressed,
        )
        return relative_attention(
            q,
            self._weights(q),
            Slots(k, v) if compressed is None else Slots(k, v, *compressed[:2]),
            first=segments.first_query(),
            count=segments.num_queries(),
            num_held=num_held,
            layout=layout,
        )

    def received(
        self,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h s d"],
        *,
        segments: Segments,
        memory: int,
        num_held: Int[Tensor, "b n"],
    ) -> Float[Tensor, "b h s"]:
        """The weights that each slot gets of all queries, if these see nothing else; without gradients."""
        missing = segments.missing(memory)
        reach = memory + segments.size
        layout = Layout(segments.size, segments.width, memory, reach, missing, 0, 0, 0)
        return attention_received(
            q,
            self._weights(q),
            k,
            first=segments.first_query(),
            count=segments.num_queries(),
            num_held=num_held,
            layout=layout,
        )

    def _weights(self, like: Tensor) -> Weights:
        return Weights(*(x.to(like.dtype) for x in (self.u, self.v, self.W_R)))


def detached(
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    compressed: CompressedSlots | None,
    *,
    segments: Segments,
    memory: int,
) -> CompressedSlots:
    """All that comes before each segment, segment after segment, with no way back for gradients."""
    l, n = segments.size, segments.count
    near, far, size, step = (k, v), (None, None), 0, 0
    if compressed is not None:
        far, size, step = (compressed.k, compressed.v), compressed.size, compressed.step
    both = []
    for x, older in zip(near, far, strict=True):
        parts = [(x, memory, l, segments.missing(memory))]
        if older is not None:
            parts = [(older, size, step, segments.missing(size + memory * step // l)), *parts]
        seen = [
            windows(F.pad(y.detach(), (0, 0, missing, 0)), count=n, width=width, stride=stride)
            for y, width, stride, missing in parts
        ]
        both.append(torch.cat(seen, 3).flatten(2, 3))
    return CompressedSlots(*both, size=size + memory, step=size + memory)
