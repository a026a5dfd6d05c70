"""Shapes and types that must fit one another.

What does not fit PyTorch may broadcast, and compiled code, its own kernels among it, reads past its end.
"""

import torch
from torch import Tensor


def require_shape(what: str, x: Tensor, *wanted: int) -> None:
    """Raise `ValueError` for a tensor of another shape than the queries ask for."""
    if x.shape != wanted:
        raise ValueError(f"{what} of shape {tuple(x.shape)} do not fit the queries: they need {wanted}")


def require_matching_inputs(q: Tensor, *keyed: Tensor) -> None:
    """Raise `ValueError` unless what goes by key has one number of keys, and the queries' batch, heads and
    dtype.
    """
    b, h = q.shape[:2]
    keys = keyed[0].shape[2]
    for x in keyed:
        require_shape("keys and values", x, b, h, keys, x.shape[3])
        if x.dtype != q.dtype:
            require_dtype("keys and values", x, q.dtype)


def require_dtype(what: str, x: Tensor, *wanted: torch.dtype) -> None:
    """Raise `ValueError` for a tensor of another dtype than one of those that are `wanted`."""
    if x.dtype not in wanted:
        raise ValueError(
            f"{what} must be {' or '.join(map(str, wanted))}, as the queries ask for, not {x.dtype}"
        )


def require_places(what: str, x: Tensor, *wanted: int) -> None:
    """Raise `ValueError` unless `x` holds places or counts of this shape; kernels read them as int64."""
    require_shape(what, x, *wanted)
    require_dtype(what, x, torch.int64)
