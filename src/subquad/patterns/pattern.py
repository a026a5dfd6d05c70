"""What a sparse pattern is, and the algebra of patterns.

A pattern says which queries i see which keys j in a sequence of n tokens. It is a value: it compares, hashes
and prints as it is written.

    Local(64) | Global(2)       union: a pair that both allow counts once
    Strided(8) & Local(64)      intersection
    ... & CAUSAL                each row sees what it would see if the sequence ended with it
    PerHead(a, b)               a pattern for each head
    Blocks(a, 64)               `a` among blocks of 64 tokens, all of whose pairs it allows

`CAUSAL` does more than hide the future. Whatever in a pattern depends on the length, such as the keys that
`Random` draws from, depends on i + 1 instead, so that a row never changes with what follows it.

One meaning has three faces: `allows` says it as a predicate, `parts` as tiles for a whole sequence, `reach`
as lists of keys for single rows of a stream. The latter two are masked with the first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from subquad.patterns.parts import Banded, Part, Positions, Predicate


class Reach(NamedTuple):
    """Keys that hold all that some rows see by `covers`; places below zero or behind the row hold none."""

    keys: Int[Tensor, "b t c"]
    covers: Predicate


class Pattern(ABC):
    """Which pairs of a query and a key take part in attention."""

    @abstractmethod
    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        """Whether query i sees key j, both between 0 and n - 1, in a sequence of n tokens."""

    @abstractmethod
    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        """Tiles that hold all pairs, in sequences of n real tokens, padded to `length`.

        With `causal` it may leave out pairs with j > i, and n is i + 1 for row i. A token here is a `unit` of
        tokens, which only matters for the choice of tiles.
        """

    @abstractmethod
    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        """The keys of rows i below `length`, causally."""

    def coarse(self, block: int) -> "Pattern":
        """The pattern of blocks that hold a pair. Raises `ValueError` where no pattern says it exactly."""
        raise ValueError(
            f"{self!r} has no exact rounding to blocks of {block}: "
            f"say which blocks it means with Blocks(pattern, {block})"
        )

    @property
    def heads(self) -> int | None:
        """How many heads it is for; None: any number, all alike."""
        return None

    @property
    def needs_end(self) -> bool:
        """Whether it treats the end of the sequence as special, so that it has no causal form."""
        return False

    def rounded(self, block: int) -> "Pattern":
        """The smallest pattern of whole blocks of `block` tokens that loses no pair.

        The result is another value, which says what it holds: `Local(64).rounded(64)` is
        `Blocks(Local(1), 64)`. Raises `ValueError` where that cannot be said exactly.
        """
        require_whole("rounded", block=(block, 1))
        return Blocks(self.coarse(block), block)

    def mask(self, length: int) -> Bool[Tensor, "*heads {length} {length}"]:
        """Every pair of a sequence of `length` tokens; with a first axis of heads where they differ."""
        at = torch.arange(length)
        return self.allows(at[:, None], at[None, :], torch.full((1, 1), length))

    def __or__(self, other: "Pattern") -> "Pattern":
        if isinstance(self, PerHead) or isinstance(other, PerHead):
            return by_head(lambda a, b: a | b, self, other)
        return Union(self, other)

    def __and__(self, other: "Pattern") -> "Pattern":
        if isinstance(self, PerHead) or isinstance(other, PerHead):
            return by_head(lambda a, b: a & b, self, other)
        return Intersection(self, other)

    def __repr__(self) -> str:
        """As it is written: options that have their default are left out."""
        shown = []
        for option in fields(self):  # type: ignore[arg-type]
            value = getattr(self, option.name)
            if option.default is MISSING:
                shown.append(repr(value))
            elif value != option.default:
                shown.append(f"{option.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Union(Pattern):
    """What either allows."""

    left: Pattern
    right: Pattern

    def __post_init__(self) -> None:
        refuse_heads(self.left, self.right)

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return self.left.allows(i, j, n) | self.right.allows(i, j, n)

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        both = (self.left, self.right)
        return [part for x in both for part in x.parts(length=length, n=n, causal=causal, unit=unit)]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        return self.left.reach(i, length=length) + self.right.reach(i, length=length)

    def coarse(self, block: int) -> Pattern:
        return self.left.coarse(block) | self.right.coarse(block)

    @property
    def needs_end(self) -> bool:
        return self.left.needs_end or self.right.needs_end

    def __repr__(self) -> str:
        return f"{self.left!r} | {bracketed(self.right, Union)}"


@dataclass(frozen=True, repr=False)
class Intersection(Pattern):
    """What both allow. It costs what the cheaper of them costs."""

    left: Pattern
    right: Pattern

    def __post_init__(self) -> None:
        refuse_heads(self.left, self.right)
        if self.without_causal is not None and self.without_causal.needs_end:
            raise ValueError(
                f"{self!r} has no meaning: row by row every token would be the last of its sequence; use a "
                "pattern that does not depend on the end, such as Global without `last`"
            )

    @property
    def without_causal(self) -> Pattern | None:
        """What CAUSAL is applied to; None where it is not an operand."""
        if isinstance(self.right, Causal):
            return self.left
        return self.right if isinstance(self.left, Causal) else None

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        if self.without_causal is not None:
            return before_end(self.without_causal.allows)(i, j, n)
        return self.left.allows(i, j, n) & self.right.allows(i, j, n)

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        if self.without_causal is not None:
            parts = self.without_causal.parts(length=length, n=n, causal=True, unit=unit)
            return [replace(part, covers=before_end(part.covers), grain=1) for part in parts]
        left, right = (x.parts(length=length, n=n, causal=causal, unit=unit) for x in (self.left, self.right))
        if sum(part.pairs(length) for part in left) <= sum(part.pairs(length) for part in right):
            return [narrowed(part, self.right) for part in left]
        return [narrowed(part, self.left) for part in right]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        if self.without_causal is not None:
            return [
                Reach(keys, before_end(covers))
                for keys, covers in self.without_causal.reach(i, length=length)
            ]
        left, right = (x.reach(i, length=length) for x in (self.left, self.right))
        if sum(x.keys.shape[2] for x in left) <= sum(x.keys.shape[2] for x in right):
            return [Reach(keys, both(covers, self.right.allows)) for keys, covers in left]
        return [Reach(keys, both(covers, self.left.allows)) for keys, covers in right]

    def coarse(self, block: int) -> Pattern:
        # exact with CAUSAL alone: each pattern that rounds holds (i, i) wherever it enters block (I, I)
        if self.without_causal is None:
            return super().coarse(block)
        return self.without_causal.coarse(block) & CAUSAL

    @property
    def needs_end(self) -> bool:
        return self.left.needs_end or self.right.needs_end

    def __repr__(self) -> str:
        return f"{bracketed(self.left, Union)} & {bracketed(self.right, Union, Intersection)}"


@dataclass(frozen=True, repr=False)
class Causal(Pattern):
    """No key behind its query. Its one value is CAUSAL; `pattern & CAUSAL` is a pattern's causal form."""

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return j <= i

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        return [Banded(covers=self.allows, block=length)]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        return [Reach(torch.arange(length, device=i.device).expand(*i.shape, -1), self.allows)]

    def coarse(self, block: int) -> Pattern:
        return self

    def __repr__(self) -> str:
        return "CAUSAL"


CAUSAL = Causal()


@dataclass(frozen=True, repr=False)
class Blocks(Pattern):
    """`pattern` among blocks of `size` tokens: where it allows two blocks, it allows all their pairs."""

    pattern: Pattern
    size: int

    def __post_init__(self) -> None:
        refuse_heads(self.pattern)
        require_whole("Blocks", size=(self.size, 1))

    def _blockwise(self, covers: Predicate) -> Predicate:
        s = self.size
        return lambda i, j, n: covers(i // s, j // s, (n + s - 1) // s)

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return self._blockwise(self.pattern.allows)(i, j, n)

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        s = self.size
        parts = self.pattern.parts(length=-(-length // s), n=(n + s - 1) // s, causal=causal, unit=unit * s)
        return [
            replace(
                no_window(part), unit=part.unit * s, grain=part.grain * s, covers=self._blockwise(part.covers)
            )
            for part in parts
        ]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        s, found = self.size, []
        within = torch.arange(s, device=i.device)
        for keys, covers in self.pattern.reach(i // s, length=-(-length // s)):
            tokens = (keys[..., None] * s + within).flatten(2)
            found.append(Reach(tokens, self._blockwise(covers)))
        return found

    def coarse(self, block: int) -> Pattern:
        if self.size % block:
            return super().coarse(block)
        return self.pattern if self.size == block else Blocks(self.pattern, self.size // block)

    @property
    def needs_end(self) -> bool:
        return self.pattern.needs_end


@dataclass(frozen=True, repr=False, init=False)
class PerHead(Pattern):
    """A pattern for each head, the first for head 0. Operators act on each head's."""

    patterns: tuple[Pattern, ...]
    groups: list[tuple[Pattern, list[int]]] = field(compare=False)  # each distinct pattern and its heads

    def __init__(self, *patterns: Pattern) -> None:
        refuse_heads(*patterns)
        if not patterns:
            raise ValueError("PerHead needs a pattern for each head: PerHead(Local(4), Strided(8))")
        object.__setattr__(self, "patterns", patterns)
        groups = [
            (one, [head for head, its in enumerate(patterns) if its == one])
            for one in dict.fromkeys(patterns)
        ]
        object.__setattr__(self, "groups", groups)

    @property
    def heads(self) -> int:
        return len(self.patterns)

    @property
    def needs_end(self) -> bool:
        return any(pattern.needs_end for pattern in self.patterns)

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        raise ValueError("PerHead has no one answer for all heads: ask each of `patterns`")

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        raise ValueError("PerHead has no one layout for all heads: ask each of `patterns`")

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        raise ValueError("PerHead has no one reach for all heads: ask each of `patterns`")

    def mask(self, length: int) -> Bool[Tensor, "*heads {length} {length}"]:
        return torch.stack([pattern.mask(length) for pattern in self.patterns])

    def rounded(self, block: int) -> Pattern:
        return PerHead(*(pattern.rounded(block) for pattern in self.patterns))

    def __repr__(self) -> str:
        return f"PerHead({', '.join(map(repr, self.patterns))})"


def by_head(combine: Callable[[Pattern, Pattern], Pattern], left: Pattern, right: Pattern) -> PerHead:
    """Each head's patterns combined; a pattern for all heads goes with each."""
    counts = {x.heads for x in (left, right)} - {None}
    if len(counts) > 1:
        raise ValueError(f"cannot combine patterns for {left.heads} and for {right.heads} heads")
    count = counts.pop() or 1
    a, b = (x.patterns if isinstance(x, PerHead) else (x,) * count for x in (left, right))
    return PerHead(*map(combine, a, b))


def before_end(covers: Predicate) -> Predicate:
    """The same for row i of a sequence that ends with i."""
    return lambda i, j, n: covers(i, j, i + 1) & (j <= i)


def narrowed(part: Part, other: Pattern) -> Part:
    """The pairs of a part that `other` allows too."""
    return replace(no_window(part), covers=both(part.covers, other.allows), grain=1)


def no_window(part: Part) -> Part:
    """The part as tiles, even where it was a plain window."""
    return replace(part, window=None) if isinstance(part, Banded) else part


def both(one: Predicate, other: Predicate) -> Predicate:
    return lambda i, j, n: one(i, j, n) & other(i, j, n)


def bracketed(pattern: Pattern, *kinds: type[Pattern]) -> str:
    return f"({pattern!r})" if isinstance(pattern, kinds) else repr(pattern)


def refuse_heads(*patterns: Pattern) -> None:
    """Raise `ValueError` for a pattern per head where one for all heads is needed."""
    for pattern in patterns:
        if pattern.heads is not None:
            raise ValueError(f"{pattern!r} must be outermost: write PerHead around the patterns of each head")


def require_whole(name: str, **options: tuple[object, int]) -> None:
    """Raise `ValueError` for an option that is no whole number, or is below its minimum."""
    for option, (value, minimum) in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{name}: {option} must be a whole number of at least {minimum}, not {value!r}")
