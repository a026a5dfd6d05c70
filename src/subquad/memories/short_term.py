"""Transformer-XL's short-term memory: attention with relative positions beyond one's own segment.

Each token sees the tokens remembered before its segment, and its segment up to itself, at distances i - j:

    a_ij = ((q_i + u) . k_j + (q_i + v) . W_R r_(i-j)) / sqrt(d),    out_i = sum_j softmax_j(a_ij) v_j
    r_n = (sin(n w_m), cos(n w_m))_m,    w_m = 10000^(-m / (d/2)),    m = 0 .. d/2 - 1

`ops/relative_attention` says how it is computed.

Dai et al.: Transformer-XL. ACL 2019, arXiv:1901.02860, section 3.3. Departs from the paper in the width of
r_n, a head's and not the model's, so that the product stays narrow; gradients flow into what came before.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from subquad.memories.segments import Segments
from subquad.ops.relative_attention import Layout, Slots, Weights, relative_attention


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
        compressed: CompressedSlots | None = None,
    ) -> Float[Tensor, "b h t d"]:
        """The outputs of the segments' queries, from slots of keys and values.

        memory: slots before each segment that its queries see; the `compressed` ones come before these.
        num_held: how many of both hold something, the latest.
        reach: a query sees itself and what is less than so many slots before it.
        """
        u, v_bias, W_R = (x.to(q.dtype) for x in (self.u, self.v, self.W_R))
        size, step = (0, 0) if compressed is None else compressed[2:]
        layout = Layout(
            size=segments.size,
            queries=segments.width,
            memory=memory,
            reach=reach,
            missing=segments.missing(memory),
            compressed=size,
            step=step,
            missing_compressed=segments.missing(size + memory * step // segments.size),
        )
        return relative_attention(
            q,
            Weights(u, v_bias, W_R),
            Slots(k, v) if compressed is None else Slots(k, v, *compressed[:2]),
            first=segments.first_query(),
            count=segments.num_queries(),
            num_held=num_held,
            layout=layout,
        )
