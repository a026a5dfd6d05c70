"""Sequences cut into chunks that lie side by side, a segment of bounded size at a time."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SCRATCH = 2**29  # numbers; 2 GiB in float32


def chunked(x: Float[Tensor, "b h t c"], size: int, *, padding: float = 0.0) -> Float[Tensor, "b h n l c"]:
    """Cut into chunks, at least one, with `padding` behind the last token.

    `size` is a power of two. Short sequences make one shorter chunk.
    """
    length = max(x.shape[2], 1)
    size = min(size, 1 << (length - 1).bit_length())
    if missing := length + -length % size - x.shape[2]:
        x = F.pad(x, (0, 0, 0, missing), value=padding)
    return x.contiguous().unflatten(2, (-1, size))


def unchunked(x: Float[Tensor, "b h n l c"], length: int) -> Float[Tensor, "b h t c"]:
    """The tokens without what is behind the last."""
    return x.flatten(2, 3)[:, :, :length]


def times(
    left: Float[Tensor, "b h n i j"], right: Float[Tensor, "b h n j k"], more: Float[Tensor, "b h n i k"]
) -> Float[Tensor, "b h n i k"]:
    """left @ right + more, for all chunks."""
    product = torch.baddbmm(*(x.flatten(0, 2) for x in (more, left, right)))
    return product.unflatten(0, more.shape[:3])


def segment_tokens(x: Float[Tensor, "b h t _"], each: int, *, multiple: int) -> int:
    """How many tokens are taken at once, if each asks for so many numbers beside inputs and results."""
    batch, heads = x.shape[:2]
    return max(1, SCRATCH // max(1, batch * heads * each * multiple)) * multiple
