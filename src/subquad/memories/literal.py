"""What the definitions of memories share: rows without padding, and a vector for each distance."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.memories.short_term import RelativeAttention
from subquad.ops.precision import wide

Row = Float[Tensor, "h t d"]


def row_by_row(
    define: Callable[..., Row], *inputs: Float[Tensor, "b h t d"], valid: Bool[Tensor, "b t"] | None
) -> Float[Tensor, "b h t d"]:
    """What `define` gives for each row as it is without its padding; zeros at padding."""
    out = torch.zeros_like(inputs[0])
    for row in range(len(out)):
        real = slice(None) if valid is None else valid[row]
        out[row, :, real] = define(*wide(*(x[row][:, real] for x in inputs))).to(out.dtype)
    return out


def relative_attention(
    q: Float[Tensor, "h t d"],
    k: Float[Tensor, "h s d"],
    v: Float[Tensor, "h s d"],
    *,
    weights: RelativeAttention,
    reach: int,
) -> Row:
    """The four terms of Transformer-XL for the last `t` of `s` tokens, `reach` back at most."""
    u, v_bias, W_R = weights.u, weights.v, weights.W_R
    t, s, d = q.shape[1], k.shape[1], q.shape[2]
    distance = torch.arange(s - t, s, device=q.device)[:, None] - torch.arange(s, device=q.device)
    half = W_R.shape[1] // 2
    angle = distance[..., None] / 10_000 ** (torch.arange(half, dtype=q.dtype, device=q.device) / half)
    R = torch.einsum("hrd,tsr->htsd", W_R, torch.cat([angle.sin(), angle.cos()], -1))
    content = torch.einsum("htd,hsd->hts", q, k) + torch.einsum("hd,hsd->hs", u, k)[:, None]
    position = torch.einsum("htd,htsd->hts", q, R) + torch.einsum("hd,htsd->hts", v_bias, R)
    unseen = (distance < 0) | (distance >= reach)
    scores = ((content + position) / d**0.5).masked_fill(unseen, -torch.inf)
    return scores.softmax(-1) @ v
