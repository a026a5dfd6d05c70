"""Random draws that are a pure function of their place: nothing to keep, the same in training and evaluation.

A row's draws depend on the seed, the row and the draw's number, and on how many keys there are to draw from.
So a row draws the same keys again whenever it is asked, a stream needs no memory of them, and a causal row,
which draws from what came before it, draws the same whatever follows.

The draws of a row are distinct by Floyd's sampling: for m = 0 … count - 1 draw from the first
range - count + m + 1 keys, and take the last of these where the drawn one was drawn before.

Bentley, Floyd: Programming pearls: a sample of brilliance. Communications of the ACM 30(9), 1987.
"""

from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

Number = TypeVar("Number", int, Tensor)

NONE = -1  # stands for a key that there is not
_BITS = 0xFFFFFFFF
_ODD = 0x45D9F3B  # below 2 ** 31, so that products of 32-bit numbers fit int64


def draws(
    row: Int[Tensor, "*n"], *, among: Int[Tensor, "*#n"], count: int, seed: int
) -> Int[Tensor, "*n {count}"]:
    """For each row `count` distinct keys of `among` keys; where there are fewer, all of them and `NONE`."""
    start = scramble(row + scramble(seed))
    m = torch.arange(count, device=row.device)
    last = among.expand(row.shape)[..., None] - count + m
    missing = last < 0
    drawn = (scramble(start[..., None] + m) % (last + 1).clamp(min=1)).masked_fill(missing, NONE)
    chosen: list[Int[Tensor, "*n"]] = []
    for key, instead in zip(drawn.unbind(-1), last.unbind(-1), strict=True):
        for earlier in chosen:
            key = torch.where(earlier == key, instead, key)
        chosen.append(key)
    return torch.stack(chosen, -1).masked_fill(missing, NONE)


def scramble(x: Number) -> Number:
    """A 32-bit number whose every bit depends on every bit of `x`."""
    x = x & _BITS
    for _ in range(2):
        x = ((x >> 16) ^ x) * _ODD & _BITS
    return (x >> 16) ^ x
