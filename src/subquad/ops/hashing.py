"""Hashing by random rotations, in blocks: the bucket is the coordinate, of either sign, that is largest.

    h(x) = argmax [x R; -x R]

A number of buckets is a product of sizes, and a bucket the number of which the hashes are the digits. Rotated
tokens take many times the memory of the tokens, so they live in a block that stays in the cache; a GPU takes
as many at once as memory allows. How many digits there are depends on the length, which only the operator's
body looks at: a graph is for all lengths.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.shared import parallel
from subquad.ops.shared.operator import call_op
from subquad.ops.shared.shapes import require_places, require_shape
from subquad.ops.shared.waiting import may_wait

MAX_COORDINATES = 2**19  # rotated coordinates at once, at least a token's
WIDEST = 64  # buckets of one hash; more are a product of hashes


def hashed(
    x: Float[Tensor, "b h n d"],
    R: Float[Tensor, "levels r d f"],
    count: Int[Tensor, " b"] | None,
    *,
    bucket: int,
) -> Int[Tensor, "b h r n"]:
    """The bucket of each token in each round, int64 (batch, heads, rounds, tokens), from 0 up.

    x       (batch, heads, tokens, d): a floating dtype
    R       (levels, rounds, d, 32): random rotations, for each digit of a bucket's number
    count   int64 (batch): tokens of each row, for about count / bucket buckets. None: all tokens count
    bucket  tokens of a bucket, on average

    Of columns that are equally large the first counts. Raises `ValueError` for shapes that do not fit.
    """
    require_shape("rotations", R, *R.shape[:2], x.shape[3], WIDEST // 2)
    if count is not None:
        require_places("counts", count, x.shape[0])
    return call_op(_hashed, x, R, count, bucket)


@torch.library.custom_op("subquad::hashed", mutates_args=())
def _hashed(x: Tensor, R: Tensor, count: Tensor | None, bucket: int) -> Tensor:
    rounds = R.shape[1]
    found = torch.zeros(*x.shape[:2], rounds, x.shape[2], dtype=torch.int64, device=x.device)
    rotations, sizes = digits(x, R, count, bucket)
    if not rotations:
        return found
    widest = max(R.shape[0] * R.shape[2] for R in rotations)
    most = MAX_COORDINATES if may_wait(x) else parallel.MAX_NUMBERS
    step = max(1, most // max(1, x.shape[0] * x.shape[1] * widest))
    for tokens, here in zip(x.split(step, 2), found.split(step, 3), strict=True):
        for R, size in reversed(list(zip(rotations, sizes, strict=True))):
            rotated = (tokens @ R.transpose(0, 1).flatten(1)).unflatten(-1, R.shape[::2])
            lengths = rotated.abs()
            if isinstance(size, Tensor):  # where rows differ, some take no more than a part of the columns
                beyond = torch.arange(R.shape[2], device=x.device) >= size[..., None] // 2
                lengths.masked_fill_(beyond, -1)
            column = lengths.argmax(-1)
            negative = rotated.gather(-1, column[..., None])[..., 0] < 0
            here.mul_(size).add_((column + size // 2 * negative).mT)
    return found


@_hashed.register_fake
def _(x: Tensor, R: Tensor, count: Tensor | None, bucket: int) -> Tensor:
    return x.new_empty(*x.shape[:2], R.shape[1], x.shape[2], dtype=torch.int64)


def digits(
    x: Tensor, R: Tensor, count: Tensor | None, bucket: int
) -> tuple[list[Float[Tensor, "r d _"]], Sequence[int] | Sequence[Int[Tensor, "b 1 1 1"]]]:
    """The rotations of each digit, the lowest first, and its size in each row: twice the columns, or one."""
    sizes = most = hash_sizes(x.shape[2], bucket)
    if count is None or not most:
        halves = [max(1, size // 2) for size in most]
    else:
        left, found = even((-(-count // bucket)).clamp(min=1)), []
        for level in reversed(range(len(most))):
            found.insert(0, even(-(-left // WIDEST**level)))
            left = -(-left // found[0])
        sizes = [size[:, None, None, None] for size in found]
        halves = [WIDEST // 2] * (len(most) - 1) + [max(1, most[-1] // 2)]
    return [R[level, :, :, :half].to(x.dtype) for level, half in enumerate(halves)], sizes


def hash_sizes(n: int, c: int) -> list[int]:
    """The buckets of the hashes whose product has about n / c: the first is the finest part of the number."""
    left, sizes = 1 if n <= c else 2 * -(-n // (2 * c)), []
    while left > WIDEST ** len(sizes):
        sizes.append(0)
    for level in reversed(range(len(sizes))):
        size = -(-left // WIDEST**level)
        sizes[level] = size if size == 1 else size + size % 2
        left = -(-left // sizes[level])
    return sizes


def even(count: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The next even number, or one."""
    return count + (count % 2) * (count > 1)
