"""Whether queries and keys are one sequence, where a wrapper may have made three tensors of one.

A layer is called as `layer(x, x, x)`, and what arrives need not be one object: `fully_shard` passes three
views of `x`, mixed precision three copies in another dtype, checkpointing three detached views, and a
compiler three inputs of a graph.
"""

import torch
from torch import Tensor

from subquad.ops.shared.waiting import is_traced, require
from subquad.torch_internals import is_batched

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


def require_one(x: Tensor, other: Tensor, *, otherwise: str) -> None:
    """Raise `ValueError(otherwise)` unless both hold the same numbers, NaN included.

    Where reading them would hold up a GPU, or there is nothing to read yet (a traced graph), the question is
    asked on the device, and the answer no is an error there.
    """
    if other is x:
        return
    if (x.shape, x.dtype, x.device) != (other.shape, other.dtype, other.device):
        raise ValueError(otherwise)
    if is_batched(x):  # vmap lets nothing be read, nor asserted
        raise ValueError(otherwise)
    if not is_traced(x) and x.data_ptr() == other.data_ptr() and x.stride() == other.stride():
        return
    require((bits(x) == bits(other)).all(), otherwise)


def bits(x: Tensor) -> Tensor:
    """The numbers as integers, so that NaN equals NaN."""
    return x.detach().view(BITS[x.itemsize])
