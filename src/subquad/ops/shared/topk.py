"""The largest of many numbers, in order, the first of equal ones first.

A stable sort of all would do, at ten times the cost of torch's `topk`, which takes equal numbers in any
order. So rows in which a number among the largest comes twice, and no others, are sorted. Where the host may
not look for such rows, no two numbers are equal: the place of each is written below its last bit.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.shared.operator import call_op
from subquad.ops.shared.waiting import may_wait


def stable_topk(x: Float[Tensor, "*rows n"], count: int) -> Int[Tensor, "*rows k"]:
    """The places of each row's `count` largest numbers; those of -inf come in no particular order."""
    return call_op(_largest, x, count)


@torch.library.custom_op("subquad::largest", mutates_args=())
def _largest(x: Tensor, count: int) -> Tensor:
    if not may_wait(x):
        if x.dtype == torch.float64:  # there is no room below its last bit
            return x.argsort(dim=-1, descending=True, stable=True)[..., :count].contiguous()
        return distinct(x).topk(count, -1).indices
    values, places = x.topk(min(count + 1, x.shape[-1]), -1)
    equal = (values[..., 1:] == values[..., :-1]) & (values[..., 1:] > -torch.inf)
    places = places[..., :count].contiguous()
    if (tied := equal.any(-1)).any():
        places[tied] = x[tied].argsort(dim=-1, descending=True, stable=True)[..., :count]
    return places


@_largest.register_fake
def _(x: Tensor, count: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], count, dtype=torch.int64)


def distinct(x: Float[Tensor, "*rows n"]) -> Int[Tensor, "*rows n"]:
    """Whole numbers in the order of those of `x`, in float32, and of equal ones the first the largest."""
    bits = (x.float() + 0.0).view(torch.int32).long()  # the sum makes one zero of both
    ascending = bits ^ ((bits >> 63) & 0x7FFFFFFF)
    return (ascending << 32) - torch.arange(x.shape[-1], device=x.device)
