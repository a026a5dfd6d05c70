"""Memory for large results, which costs less where its pages are large.

The C library maps new memory for every tensor beyond 32 MB, and the kernel hands it out page by page, at the
first touch: for a result that is written once this takes longer than the writing. Linux gives pages of 2 MB
to those who ask for them.
"""

import ctypes
import sys
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

from subquad.ops.shared.operator import needs_dispatcher

LARGE = 2**24  # bytes; smaller tensors mostly get memory that was in use before
PAGE = 4096
MADV_HUGEPAGE = 14


def empty_result(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An empty contiguous tensor of this shape, by default that of `like`, to be written as a whole."""
    x = like.new_empty(shape or like.shape, dtype=dtype)
    if x.nbytes >= LARGE and x.is_cpu and (advise := madvise()):
        first, last = -(-x.data_ptr() // PAGE) * PAGE, (x.data_ptr() + x.nbytes) // PAGE * PAGE
        advise(first, last - first, MADV_HUGEPAGE)  # where it is refused, nothing but time is lost
    return x


def concat_into(parts: Iterable[Tensor], like: Tensor, *shape: int, dim: int) -> Tensor:
    """Parts side by side along `dim`, of this shape in all and in the dtype of `like`.

    Where nobody listens each goes to its place as it comes, and its memory to the next.
    """
    parts = iter(parts)
    part = next(parts)
    if part.shape[dim] == shape[dim]:
        return part.to(like.dtype)
    if needs_dispatcher():
        return torch.cat([x.to(like.dtype) for x in (part, *parts)], dim)
    out, at = empty_result(like, *shape), 0
    while part is not None:
        out.narrow(dim, at, part.shape[dim]).copy_(part)
        at += part.shape[dim]
        part = None  # its memory is the next one's
        part = next(parts, None)
    return out


@cache
def madvise() -> Callable[[int, int, int], int] | None:
    """The C library's own, on Linux."""
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
