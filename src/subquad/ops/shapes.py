"""Shapes that must fit one another.

What does not fit PyTorch may broadcast, and compiled code, its own kernels among it, reads past its end.
"""

from torch import Tensor


def require_shape(what: str, x: Tensor, *wanted: int) -> None:
    """Raise `ValueError` for a tensor of another shape than the queries ask for."""
    if x.shape != wanted:
        raise ValueError(f"{what} of shape {tuple(x.shape)} do not fit the queries: they need {wanted}")


def require_together(q: Tensor, *keyed: Tensor) -> None:
    """Raise `ValueError` unless what goes by key has one number of keys, and the queries' batch and heads."""
    b, h = q.shape[:2]
    keys = keyed[0].shape[2]
    for x in keyed:
        require_shape("keys and values", x, b, h, keys, x.shape[3])
