"""How the Compressive Transformer makes one slot of `rate` old tokens.

    mean           y_g = sum_r x_(c g + r) / c
    max            y_g = max_r x_(c g + r), number by number
    convolution    y_g = sum_r A_r x_(c g + r) + b, a convolution of width and stride c
    dilated        the same of z, where z = x at first, and then, with s = 1, 2, 4 .. below c
                   z_p <- z_p + gelu(B_-1 z_(p-s) + B_0 z_p + B_1 z_(p+s) + b)
    most-used      of the l tokens that leave the memory together the l / c that were most attended to

with c the rate, r = 0 .. c - 1, and zeros before the first and after the last of the tokens that leave
together. Which tokens these are depends on their places alone, so that chunks of any sizes make the same
slots, and none is left out.

A token's use is the mean weight that it had in all heads, for all queries that saw it: those of its segment
behind it, and those of all the segments that had it in their memory.

Rae, Potapenko, Jayakumar, Hillier, Lillicrap: Compressive Transformers for Long-Range Sequence Modelling.
ICLR 2020, arXiv:1911.05507, section 3.2. It says of the fourth no more than its name: how many layers there
are, how wide, and what is between them, is ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.ops.shared.packing import take

KeysOrValues = Float[Tensor, "b h _ d"]

KINDS = ("mean", "max", "convolution", "dilated", "most-used")


class Compressor(nn.Module):
    """What makes slots of keys and values that leave the memory, `block` of them at a time."""

    def __init__(self, *, rate: int, block: int) -> None:
        super().__init__()
        self.rate, self.block = rate, block

    def forward(self, *k_and_v: KeysOrValues) -> list[KeysOrValues]:
        """A slot for each `rate` tokens. They are whole blocks."""
        raise NotImplementedError


class Pool(Compressor):
    """The mean or the maximum; nothing to learn."""

    def __init__(self, *, kind: str, rate: int) -> None:
        super().__init__(rate=rate, block=rate)
        self.kind = kind

    def forward(self, *k_and_v: KeysOrValues) -> list[KeysOrValues]:
        groups = (grouped(x, self.rate) for x in k_and_v)
        return [x.mean(3) if self.kind == "mean" else x.amax(3) for x in groups]


class Convolution(Compressor):
    """A convolution for keys and one for values, head by head. They begin as the mean."""

    def __init__(self, *, heads: int, head_dim: int, rate: int, block: int) -> None:
        super().__init__(rate=rate, block=block)
        self.A = nn.Parameter(torch.eye(head_dim).repeat(2, heads, rate, 1, 1) / rate)
        self.b = nn.Parameter(torch.zeros(2, heads, head_dim))

    def forward(self, *k_and_v: KeysOrValues) -> list[KeysOrValues]:
        A, b = self.A.to(k_and_v[0].dtype).flatten(2, 3), self.b.to(k_and_v[0].dtype)
        groups = (grouped(x, self.rate).flatten(3) for x in k_and_v)
        return [x @ A[n] + b[n][:, None] for n, x in enumerate(groups)]


class Dilated(Convolution):
    """Before the convolution each token hears of its neighbours, near ones and then further ones.

    A slot sees its own tokens and at least c - 1 on either side. It begins as the mean too.
    """

    def __init__(self, *, heads: int, head_dim: int, rate: int, block: int) -> None:
        super().__init__(heads=heads, head_dim=head_dim, rate=rate, block=block)
        layers = max(1, (rate - 1).bit_length())
        self.dilations = [2**n for n in range(layers)]
        self.B = nn.Parameter(torch.zeros(layers, 2, heads, 3, head_dim, head_dim))
        self.bias = nn.Parameter(torch.zeros(layers, 2, heads, head_dim))

    def forward(self, *k_and_v: KeysOrValues) -> list[KeysOrValues]:
        return super().forward(*(self._hear(x, n) for n, x in enumerate(k_and_v)))

    def _hear(self, x: KeysOrValues, n: int) -> KeysOrValues:
        B, bias, l = self.B[:, n].to(x.dtype).flatten(2, 3), self.bias[:, n].to(x.dtype), self.block
        z = grouped(x, l)
        for s, weight, offset in zip(self.dilations, B, bias, strict=True):
            padded = F.pad(z, (0, 0, s, s))
            around = torch.cat([padded[..., :l, :], z, padded[..., 2 * s :, :]], -1)
            z = z + F.gelu(around @ weight[:, None] + offset[:, None, None])
        return z.flatten(2, 3)


class MostUsed(Compressor):
    """The tokens themselves, the same ones for all heads. It wants to be told of their use."""

    def __init__(self, *, rate: int, block: int, memory: int) -> None:
        super().__init__(rate=rate, block=block)
        self.memory = memory

    def forward(
        self, *k_and_v: KeysOrValues, use: Float[Tensor, "b h s 1"], missing: Int[Tensor, " b"]
    ) -> list[KeysOrValues]:
        """`use` is what each token received of all queries' weights; the first places may be `missing`."""
        l, place = self.block, torch.arange(self.block, device=use.device)
        received = grouped(use.mean(1, keepdim=True), l)[:, 0, :, :, 0]
        start = l * torch.arange(received.shape[1], device=use.device)[:, None]
        there = start + place >= missing[:, None, None]
        score = (received / (l + self.memory - place)).masked_fill(~there, -1)
        rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        kept = rank < there.sum(-1, keepdim=True) // self.rate
        chosen = torch.where(kept, place, -1).sort(-1).values[..., l - l // self.rate :]
        source = (start + chosen.clamp(min=0)).flatten(1)
        return [take(x, source, real=chosen.flatten(1) >= 0) for x in k_and_v]


class Decoder(nn.Module):
    """Makes of each slot its `rate` tokens again, head by head. It begins with so many copies of the slot."""

    def __init__(self, *, heads: int, head_dim: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.D = nn.Parameter(torch.eye(head_dim).repeat(2, heads, 1, rate))
        self.e = nn.Parameter(torch.zeros(2, heads, rate * head_dim))

    def forward(self, *slots: KeysOrValues) -> list[KeysOrValues]:
        D, e = self.D.to(slots[0].dtype), self.e.to(slots[0].dtype)
        tokens = (y @ D[n] + e[n][:, None] for n, y in enumerate(slots))
        return [x.unflatten(-1, (self.rate, slots[0].shape[3])).flatten(2, 3) for x in tokens]


def grouped(x: Float[Tensor, "b h s c"], size: int) -> Float[Tensor, "b h _ {size} c"]:
    """`size` tokens a group."""
    if torch.compiler.is_compiling():  # which cannot prove that the length divides
        return x.unfold(2, size, size).mT
    return x.unflatten(2, (-1, size))


def compressor(kind: str, *, heads: int, head_dim: int, rate: int, segment: int, memory: int) -> Compressor:
    """What compresses keys and values, by the name of its `kind`, one of `KINDS`.

    A whole `segment` leaves a `memory` of so many tokens at a time.
    """
    match kind:
        case "convolution":
            return Convolution(heads=heads, head_dim=head_dim, rate=rate, block=rate)
        case "dilated":
            return Dilated(heads=heads, head_dim=head_dim, rate=rate, block=segment)
        case "most-used":
            return MostUsed(rate=rate, block=segment, memory=memory)
        case _:
            return Pool(kind=kind, rate=rate)
