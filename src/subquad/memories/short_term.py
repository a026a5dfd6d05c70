"""Transformer-XL's short-term memory: attention with relative positions beyond one's own segment.

Each token sees the tokens remembered before its segment, and its segment up to itself, at distances i - j:

    a_ij = ((q_i + u) . k_j + (q_i + v) . W_R r_(i-j)) / sqrt(d),    out_i = sum_j softmax_j(a_ij) v_j
    r_n = (sin(n w_m), cos(n w_m))_m,    w_m = 10000^(-m / (d/2)),    m = 0 .. d/2 - 1

The second term looks like a matrix of scores by distance that has to be shifted row by row. It need not be:
by the addition theorems a . r_(i-j) = turn_i(a) . r_j, where turn_i rotates each pair of sine and cosine. So
the two terms are one product of queries and keys twice as wide, and fused kernels apply.

Dai et al.: Transformer-XL. ACL 2019, arXiv:1901.02860, section 3.3. Departs from the paper in the width of
r_n, a head's and not the model's, so that the product stays narrow; gradients flow into what came before.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.memories.segments import Segments, as_batch


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
        i: Int[Tensor, "b t"],
        j: Int[Tensor, " s"],
        seen: Bool[Tensor, "b t s"],
    ) -> Float[Tensor, "b h t d"]:
        """Attend from positions `i` to positions `j` where `seen`; every query must see a key."""
        d, like = q.shape[-1], q
        u, v_bias, W_R = (x.to(q.dtype) for x in (self.u, self.v, self.W_R))
        turned = turn((q + v_bias[:, None]) @ W_R.mT, sinusoid(i, W_R.shape[1], like=like)[:, None])
        queries = torch.cat([q + u[:, None], turned], -1)
        r = sinusoid(j, W_R.shape[1], like=like)
        keys = torch.cat([k, r.expand(*k.shape[:2], -1, -1)], -1)
        values = F.pad(v, (0, queries.shape[-1] - d))  # fused CPU kernels want one width
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen[:, None], scale=d**-0.5)
        return mixed[..., :d]

    def by_segment(
        self,
        queries: Float[Tensor, "b h n w d"],
        window: Float[Tensor, "b h n s c"],
        *,
        segments: Segments,
        held: Int[Tensor, "b n"],
        reach: int,
    ) -> Float[Tensor, "b h n w d"]:
        """Each segment's queries attend to its own window, of keys and values side by side.

        The last slots of a window are the segment itself; of those before them, `held` hold something. A
        query sees itself and what is less than `reach` slots behind it.
        """
        i, slots = segments.slots()[..., None], window.shape[3]
        j = torch.arange(segments.size - slots, segments.size, device=i.device)
        seen = (j <= i) & (i - j < reach) & (j >= -held[..., None, None])
        q, k, v = (as_batch(x) for x in (queries, *window.chunk(2, -1)))
        mixed = self(q, k, v, i=i[..., 0].flatten(0, 1), j=j, seen=seen.flatten(0, 1))
        return mixed.unflatten(0, (-1, segments.count)).transpose(1, 2)


def sinusoid(n: Int[Tensor, "*n"], width: int, *, like: Tensor) -> Float[Tensor, "*n {width}"]:
    """r_n: the sines of all frequencies, then the cosines."""
    m = torch.arange(width // 2, dtype=like.dtype, device=like.device)
    angle = n[..., None] * 10_000.0 ** (-2 * m / width)
    return torch.cat([angle.sin(), angle.cos()], -1)


def turn(a: Float[Tensor, "*n r"], r: Float[Tensor, "*#n r"]) -> Float[Tensor, "*n r"]:
    """The vector whose product with r_j is that of `a` with r_(i-j), where `r` is r_i."""
    a_sin, a_cos = a.chunk(2, -1)
    sin, cos = r.chunk(2, -1)
    return torch.cat([a_cos * sin - a_sin * cos, a_sin * sin + a_cos * cos], -1)
