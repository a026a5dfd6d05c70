"""Softmax attention by PyTorch's fused operator, where that can do what is asked of it.

Fused kernels have first derivatives in reverse mode, and no others. Under a transform of `torch.func` or in
forward mode the same is computed by matrix products, which have all. Whether a second derivative will be
asked for nobody knows beforehand, so that it is refused when it is.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from subquad.ops.shared.transforms import PLAINLY, once, transformed

NO_SECOND = (
    "PyTorch's fused attention has no second derivative: take it within torch.nn.attention.sdpa_kernel("
    f"SDPBackend.MATH), {PLAINLY}"
)


def attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    *,
    seen: Bool[Tensor, "#b #h #t s"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "b h t e"]:
    """What each query gets from the keys that it sees.

    q       (batch, heads, tokens, d); k, v (batch, heads, keys, d and e): one floating dtype
    seen    bool, (batch, heads, tokens, keys) or one for several. None: all are seen
    causal  no key later than its query is seen; without `seen`
    """
    if transformed():
        with sdpa_kernel(SDPBackend.MATH):
            return scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    if not torch.compiler.is_compiling() and fused():
        q, k, v = (once(x, NO_SECOND) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)


def fused() -> bool:
    """Whether PyTorch may take a fused kernel; `sdpa_kernel` forbids it."""
    allowed = torch.backends.cuda
    return allowed.flash_sdp_enabled() or allowed.mem_efficient_sdp_enabled() or allowed.cudnn_sdp_enabled()
