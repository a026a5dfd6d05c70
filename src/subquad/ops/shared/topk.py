"""The largest of many numbers, in order, the first of equal ones first.

A stable sort of all would do, at ten times the cost of torch's `topk`, which takes equal numbers in any
order. So rows in which a number among the largest comes twice, and no others, are sorted.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.shared.operator import call_op


def stable_topk(x: Float[Tensor, "b h c n"], count: int) -> Int[Tensor, "b h c k"]:
    """The places of each row's `count` largest numbers; those of -inf come in no particular order."""
    return call_op(_largest, x, count)


@torch.library.custom_op("subquad::largest", mutates_args=())
def _largest(x: Tensor, count: int) -> Tensor:
    values, places = x.topk(min(count + 1, x.shape[-1]), -1)
    equal = (values[..., 1:] == values[..., :-1]) & (values[..., 1:] > -torch.inf)
    places = places[..., :count].contiguous()
    if (tied := equal.any(-1)).any():
        places[tied] = x[tied].argsort(dim=-1, descending=True, stable=True)[..., :count]
    return places


@_largest.register_fake
def _(x: Tensor, count: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], count, dtype=torch.int64)
