"""How tokens are laid out so that a part of a pattern becomes matrix products.

A part lays queries and keys out in tiles, `a` queries beside `c` keys, such that the pairs it covers lie
inside the tiles:

    Banded     blocks of consecutive tokens, or of every `stride`-th, beside the blocks around them
    Picked     some tokens, or all, beside some keys, or all: one tile
    Scattered  every token beside keys of its own

A layout is a linear map of tokens, and zero where there is no token. So positions, counted from one, laid out
like the tokens say which pair stands where, and a mask cannot disagree with what it masks. Parts may lay out
whole blocks of tokens, `unit` at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

Positions = Int[Tensor, "*_"]
Predicate = Callable[[Positions, Positions, Positions], Bool[Tensor, "*_"]]  # of i, j and n; they broadcast

Tokens = Shaped[Tensor, "#b h s c"]
Tiles = Shaped[Tensor, "#b h tiles l c"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part(ABC):
    """Tiles that hold all pairs that `covers`. Everything here counts units, except the public methods."""

    covers: Predicate
    unit: int = 1  # tokens that are laid out as one
    grain: int = 1  # tokens in a row, from a multiple of it on, that `covers` cannot tell apart

    def queries(self, x: Tokens) -> Tiles:
        return in_tokens(self._queries(in_units(x, self.unit)), self.unit)

    def keys(self, x: Tokens) -> Tiles:
        return in_tokens(self._keys(in_units(x, self.unit)), self.unit)

    def restore(self, y: Tiles, *, length: int, fill: float) -> Tokens:
        """What belongs to each laid-out query, back at its place among `length`; `fill` for the others."""
        y = y.unflatten(3, (-1, self.unit)).flatten(4)
        y = self._restore(y, length=-(-length // self.unit), fill=fill)
        return y.unflatten(3, (self.unit, -1)).flatten(2, 3)[:, :, :length]

    def pairs(self, length: int) -> int:
        """How many pairs the tiles hold."""
        return self._pairs(-(-length // self.unit)) * self.unit**2

    @abstractmethod
    def _queries(self, x: Tokens) -> Tiles: ...

    @abstractmethod
    def _keys(self, x: Tokens) -> Tiles: ...

    @abstractmethod
    def _restore(self, y: Tiles, *, length: int, fill: float) -> Tokens: ...

    @abstractmethod
    def _pairs(self, length: int) -> int: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Banded(Part):
    """Blocks of `block` among every `stride`-th token, beside `before` + 1 + `after` blocks of keys."""

    block: int
    before: int = 0
    after: int = 0
    stride: int = 1
    window: tuple[int, int] | None = None  # it covers just these many tokens to the left and right of each

    def _blocks(self, x: Tokens) -> Shaped[Tensor, "#b h residues blocks l c"]:
        whole = self.stride * self.block
        x = F.pad(x, (0, 0, 0, -x.shape[2] % whole))
        x = x.unflatten(2, (x.shape[2] // self.stride, self.stride)).transpose(2, 3)
        return x.unflatten(3, (x.shape[3] // self.block, self.block))

    def _queries(self, x: Tokens) -> Tiles:
        return self._blocks(x).flatten(2, 3)

    def _keys(self, x: Tokens) -> Tiles:
        blocks = self._blocks(x)
        count = blocks.shape[3]
        if self.before or self.after:
            padded = F.pad(blocks, (0, 0, 0, 0, self.before, self.after))
            around = range(self.before + 1 + self.after)
            blocks = torch.cat([padded[:, :, :, i : i + count] for i in around], 4)
        return blocks.flatten(2, 3)

    def _restore(self, y: Tiles, *, length: int, fill: float) -> Tokens:
        y = y.unflatten(2, (self.stride, -1)).flatten(3, 4)
        return y.transpose(2, 3).flatten(2, 3)[:, :, :length]

    def _pairs(self, length: int) -> int:
        blocks = -(-length // (self.stride * self.block)) * self.stride
        return blocks * self.block**2 * (self.before + 1 + self.after)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picked(Part):
    """Queries at some places, row by row if need be, beside keys at others; None: all of them.

    A place that does not exist holds none.
    """

    queries_at: Int[Tensor, "#b a"] | None
    keys_at: Int[Tensor, "#b c"] | None

    def _queries(self, x: Tokens) -> Shaped[Tensor, "#b h 1 l c"]:
        return (x if self.queries_at is None else pick(x, self.queries_at))[:, :, None]

    def _keys(self, x: Tokens) -> Tiles:
        return (x if self.keys_at is None else pick(x, self.keys_at))[:, :, None]

    def _restore(self, y: Tiles, *, length: int, fill: float) -> Tokens:
        y = y[:, :, 0]
        if self.queries_at is None:
            return y
        b, h, _, c = y.shape
        exists = (self.queries_at >= 0) & (self.queries_at < length)
        place = torch.where(exists, self.queries_at, length)[:, None, :, None].expand(b, h, -1, c)
        return y.new_full((b, h, length + 1, c), fill).scatter(2, place, y)[:, :, :length]

    def _pairs(self, length: int) -> int:
        a, c = (length if at is None else at.shape[1] for at in (self.queries_at, self.keys_at))
        return a * c


@dataclass(frozen=True, kw_only=True, eq=False)
class Scattered(Part):
    """Every token beside the keys at its own places."""

    keys_at: Int[Tensor, "#b s c"]

    def _queries(self, x: Tokens) -> Tiles:
        return x[:, :, :, None]

    def _keys(self, x: Tokens) -> Tiles:
        return pick(x, self.keys_at.flatten(1)).unflatten(2, self.keys_at.shape[1:])

    def _restore(self, y: Tiles, *, length: int, fill: float) -> Tokens:
        return y[:, :, :, 0]

    def _pairs(self, length: int) -> int:
        return length * self.keys_at.shape[2]


def pick(x: Shaped[Tensor, "#b h s c"], places: Int[Tensor, "#b a"]) -> Shaped[Tensor, "#b h a c"]:
    """`x` at `places`, zeros where there is no such place."""
    _, h, s, c = x.shape
    b, place = places.shape[0], places.clamp(0, s - 1)
    if b == 1:  # faster than a gather, backwards too
        picked = x.index_select(2, place[0])
    else:
        picked = x.expand(b, -1, -1, -1).gather(2, place[:, None, :, None].expand(b, h, -1, c))
    return picked.masked_fill(((places < 0) | (places >= s))[:, None, :, None], 0)


def in_units(x: Tokens, unit: int) -> Shaped[Tensor, "#b h units _"]:
    """Each `unit` tokens as one, with zeros behind the last."""
    if unit == 1:
        return x
    x = F.pad(x, (0, 0, 0, -x.shape[2] % unit))
    return x.unflatten(2, (x.shape[2] // unit, unit)).flatten(3)


def in_tokens(y: Tiles, unit: int) -> Shaped[Tensor, "#b h tiles _ _"]:
    """Laid-out units as tokens again."""
    return y if unit == 1 else y.unflatten(4, (unit, y.shape[4] // unit)).flatten(3, 4)
