"""Hashing by random rotations, in blocks: the bucket is the coordinate, of either sign, that is largest.

    h(x) = argmax [x R; -x R]

A number of buckets is a product of sizes, and a bucket the number of which the hashes are the digits. Rotated
tokens take many times the memory of the tokens, so they live in a block that stays in the cache.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.operator import call
from subquad.ops.shapes import require_dtype, require_places, require_shape

BLOCK = 2**19  # rotated coordinates at once, at least a token's


def hashed(
    x: Float[Tensor, "b h n d"],
    rotations: list[Float[Tensor, "r d _"]],
    sizes: Int[Tensor, "b levels"],
    *,
    even: bool,
) -> Int[Tensor, "b h r n"]:
    """The bucket of each token in each round: of a row's sizes, the first is that of the lowest digit.

    A size is twice the columns that it takes of its rotation, or one. `even`: all of them, in every row. Of
    columns that are equally large the first counts. Raises `ValueError` for shapes or dtypes that do not fit.
    """
    for R in rotations:
        require_shape("rotations", R, rotations[0].shape[0], x.shape[3], R.shape[2])
        require_dtype("rotations", R, x.dtype)
    require_places("sizes", sizes, x.shape[0], len(rotations))
    return call(_hashed, x, rotations, sizes, even)


@torch.library.custom_op("subquad::hashed", mutates_args=())
def _hashed(x: Tensor, rotations: list[Tensor], sizes: Tensor, even: bool) -> Tensor:
    rounds = rotations[0].shape[0]
    bucket = torch.zeros(*x.shape[:2], rounds, x.shape[2], dtype=torch.int64, device=x.device)
    widest = max(R.shape[0] * R.shape[2] for R in rotations)
    step = max(1, BLOCK // max(1, x.shape[0] * x.shape[1] * widest))
    for tokens, found in zip(x.split(step, 2), bucket.split(step, 3), strict=True):
        for R, size in reversed(list(zip(rotations, sizes.unbind(1), strict=True))):
            size = size[:, None, None, None]
            rotated = (tokens @ R.transpose(0, 1).flatten(1)).unflatten(-1, R.shape[::2])
            lengths = rotated.abs()
            if not even:
                beyond = torch.arange(R.shape[2], device=x.device) >= size[..., None] // 2
                lengths.masked_fill_(beyond, -1)
            column = lengths.argmax(-1)
            negative = rotated.gather(-1, column[..., None])[..., 0] < 0
            found.mul_(size).add_((column + size // 2 * negative).mT)
    return bucket


@_hashed.register_fake
def _(x: Tensor, rotations: list[Tensor], sizes: Tensor, even: bool) -> Tensor:
    return x.new_empty(*x.shape[:2], rotations[0].shape[0], x.shape[2], dtype=torch.int64)
