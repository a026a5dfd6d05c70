"""Products of tiles, as exact as the inputs' dtype, on cards and in Triton's interpreter alike.

bfloat16   operands in bfloat16, sums in float32
float16    operands in TF32: as many bits, and float32's range, since sums of features outgrow float16
float32    three products in TF32, as exact as float32; one where PyTorch may use TF32, too
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl

from subquad.ops.triton.availability import interpreted
from subquad.ops.triton.launch import inlined, power_of_two

INTERPRETED = tl.constexpr(interpreted())
NOTHING = tl.constexpr(-1e30)  # in place of -inf, two of which have no difference
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Products(NamedTuple):
    """The dtype of operands, how they are multiplied, and the dtype in which tiles are kept."""

    LOW: Any
    PRECISION: str
    saved: torch.dtype


def products_of(dtype: torch.dtype) -> Products:
    """For inputs of this dtype."""
    if dtype == torch.bfloat16:
        return Products(tl.bfloat16, "ieee", torch.bfloat16)
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return Products(tl.float32, "tf32x3" if exact else "tf32", torch.float32)


@inlined
def mm(x, y, LOW: tl.constexpr, PRECISION: tl.constexpr):
    """x y with operands rounded to LOW; the interpreter would multiply the integers that hold bfloat16."""
    x, y = x.to(LOW), y.to(LOW)
    if INTERPRETED:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, input_precision=PRECISION)


def block(size: int, most: int = 128) -> int:
    """The length of a tile for `size` numbers: a power of two, as products need it."""
    return min(most, max(16, power_of_two(size)))
