"""How the Compressive Transformer makes one slot of `rate` old tokens.

    mean           y_g = sum_r x_(c g + r) / c
    max            y_g = max_r x_(c g + r), number by number
    convolution    y_g = sum_r A_r x_(c g + r) + b, a convolution of width and stride c

with c the rate and r = 0 .. c - 1. Which tokens make a slot depends on their places alone: token p is in slot
p // c, so that chunks of any sizes make the same slots, and none is left out.

Rae, Potapenko, Jayakumar, Hillier, Lillicrap: Compressive Transformers for Long-Range Sequence Modelling.
ICLR 2020, arXiv:1911.05507, section 3.2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

KeysOrValues = Float[Tensor, "b h _ d"]

KINDS = ("mean", "max", "convolution")


class Pool(nn.Module):
    """The mean or the maximum; nothing to learn."""

    def __init__(self, *, kind: str, rate: int) -> None:
        super().__init__()
        self.kind, self.rate = kind, rate

    def forward(self, *k_and_v: KeysOrValues) -> list[KeysOrValues]:
        groups = (grouped(x, self.rate) for x in k_and_v)
        return [x.mean(3) if self.kind == "mean" else x.amax(3) for x in groups]


class Convolution(nn.Module):
    """A convolution for keys and one for values, head by head. They begin as the mean."""

    def __init__(self, *, heads: int, head_dim: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.A = nn.Parameter(torch.eye(head_dim).repeat(2, heads, rate, 1, 1) / rate)
        self.b = nn.Parameter(torch.zeros(2, heads, head_dim))

    def forward(self, *k_and_v: KeysOrValues) -> list[KeysOrValues]:
        A, b = self.A.to(k_and_v[0].dtype).flatten(2, 3), self.b.to(k_and_v[0].dtype)
        groups = (grouped(x, self.rate).flatten(3) for x in k_and_v)
        return [x @ A[n] + b[n][:, None] for n, x in enumerate(groups)]


def grouped(x: KeysOrValues, rate: int) -> Float[Tensor, "b h _ {rate} d"]:
    """`rate` tokens a slot."""
    if torch.compiler.is_compiling():  # which cannot prove that the length divides
        return x.unfold(2, rate, rate).mT
    return x.unflatten(2, (-1, rate))


def compressor(kind: str, *, heads: int, head_dim: int, rate: int) -> Pool | Convolution:
    """What compresses keys and values, by the name of its `kind`, one of `KINDS`."""
    if kind == "convolution":
        return Convolution(heads=heads, head_dim=head_dim, rate=rate)
    return Pool(kind=kind, rate=rate)
