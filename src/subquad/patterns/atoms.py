"""The patterns that others are made of. Queries are i, keys j, and a sequence has n tokens, all from 0."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from subquad.patterns.draws import draws
from subquad.patterns.parts import Banded, Part, Picked, Positions, Predicate, Scattered
from subquad.patterns.pattern import Blocks, Pattern, Reach, require_whole

MOST_DRAWS = 1024  # of a row: drawing them takes the square of their number
SMALLEST_TILE, LARGEST_TILE = 16, 128  # tokens; matrix products of fewer are slow, of more hold idle pairs


@dataclass(frozen=True, repr=False)
class Local(Pattern):
    """A window of `width` on either side: |i - j| <= width."""

    width: int

    def __post_init__(self) -> None:
        require_whole("Local", width=(self.width, 0))

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return (i - j).abs() <= self.width

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        part = band(self.allows, self.width, length=length, causal=causal, unit=unit)
        return [replace(part, window=(self.width, 0 if causal else self.width))]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        return [Reach(backwards(i, count=self.width + 1, length=length), self.allows)]

    def coarse(self, block: int) -> Pattern:
        return Local(-(-self.width // block))


@dataclass(frozen=True, repr=False)
class Dilated(Pattern):
    """Every `dilation`-th token, `width` of them on either side.

    |i - j| <= width * dilation, and i - j is a multiple of dilation.
    """

    width: int
    dilation: int

    def __post_init__(self) -> None:
        require_whole("Dilated", width=(self.width, 0), dilation=(self.dilation, 1))

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        d = i - j
        return (d.abs() <= self.width * self.dilation) & (d % self.dilation == 0)

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        stride = self.dilation
        part = band(self.allows, self.width, length=length, causal=causal, unit=unit, stride=stride)
        return [replace(part, window=(self.width, 0 if causal else self.width))]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        keys = backwards(i, count=self.width + 1, length=length, stride=self.dilation)
        return [Reach(keys, self.allows)]

    def coarse(self, block: int) -> Pattern:
        if self.dilation > block:
            return super().coarse(block)
        return Local(-(-self.width * self.dilation // block))


@dataclass(frozen=True, repr=False)
class Strided(Pattern):
    """Every `stride`-th token, however far: i - j is a multiple of stride.

    Child et al. 2019, arXiv:1904.10509, section 4.3.
    """

    stride: int

    def __post_init__(self) -> None:
        require_whole("Strided", stride=(self.stride, 1))

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return (i - j) % self.stride == 0

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        return [Banded(covers=self.allows, block=-(-length // self.stride), stride=self.stride)]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        return [Reach(backwards(i, count=length, length=length, stride=self.stride), self.allows)]


@dataclass(frozen=True, repr=False)
class Summaries(Pattern):
    """The last `columns` tokens of every block of `stride`, or as many that stand `before` its last ones.

    stride - before - columns <= j mod stride < stride - before.
    """

    stride: int
    columns: int
    before: int = 0

    def __post_init__(self) -> None:
        require_whole("Summaries", before=(self.before, 0))
        require_columns(self, self.stride, self.columns, before=self.before)

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        from_end = self.stride - j % self.stride
        return (from_end > self.before) & (from_end <= self.before + self.columns) & (i == i)

    def _places(self, length: int, device: torch.device) -> Int[Tensor, " c"]:
        blocks = torch.arange(0, length, self.stride, device=device)
        end = self.stride - self.before
        columns = torch.arange(end - self.columns, end, device=device)
        return (blocks[:, None] + columns).flatten()

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        return [Picked(covers=self.allows, queries_at=None, keys_at=self._places(length, n.device)[None])]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        return [Reach(self._places(length, i.device).expand(*i.shape, -1), self.allows)]

    def coarse(self, block: int) -> Pattern:
        if self.stride % block:
            return super().coarse(block)
        before = self.before // block
        return Summaries(self.stride // block, -(-(self.before + self.columns) // block) - before, before)


@dataclass(frozen=True, repr=False)
class Fixed(Pattern):
    """The own block of `stride` tokens, and the last `columns` tokens of every block.

    floor(i / stride) = floor(j / stride), or j mod stride >= stride - columns. Child et al. 2019,
    arXiv:1904.10509, section 4.3.
    """

    stride: int
    columns: int

    def __post_init__(self) -> None:
        require_columns(self, self.stride, self.columns)

    @property
    def union(self) -> Pattern:
        return Blocks(Local(0), self.stride) | Summaries(self.stride, self.columns)

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return self.union.allows(i, j, n)

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        return self.union.parts(length=length, n=n, causal=causal, unit=unit)

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        return self.union.reach(i, length=length)

    def coarse(self, block: int) -> Pattern:
        if self.stride % block:
            return super().coarse(block)
        return Fixed(self.stride // block, -(-self.columns // block))


@dataclass(frozen=True, repr=False)
class Columns(Pattern):
    """The first `count` tokens, and the last `last`, are seen by all."""

    count: int
    last: int = 0

    def __post_init__(self) -> None:
        require_ends(self, self.count, self.last)

    def _first(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return (j < self.count) & (i == i)

    def _last(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return (j >= n - self.last) & (i == i)

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return self._first(i, j, n) | self._last(i, j, n)

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        return [
            Picked(covers=covers, queries_at=None, keys_at=places)
            for covers, places in ends(self, self._first, self._last, length=length, n=n)
        ]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        first = torch.arange(min(self.count, length), device=i.device)
        return [Reach(first.expand(*i.shape, -1), self._first)]

    def coarse(self, block: int) -> Pattern:
        return Columns(-(-self.count // block)) if self.last == 0 else super().coarse(block)

    @property
    def needs_end(self) -> bool:
        return self.last > 0


@dataclass(frozen=True, repr=False)
class Rows(Pattern):
    """The first `count` tokens, and the last `last`, see all."""

    count: int
    last: int = 0

    def __post_init__(self) -> None:
        require_ends(self, self.count, self.last)

    def _first(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return (i < self.count) & (j == j)

    def _last(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return (i >= n - self.last) & (j == j)

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return self._first(i, j, n) | self._last(i, j, n)

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        return [
            Picked(covers=covers, queries_at=places, keys_at=places if causal else None)
            for covers, places in ends(self, self._first, self._last, length=length, n=n)
        ]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        first = torch.arange(min(self.count, length), device=i.device)
        return [Reach(first.expand(*i.shape, -1), self._first)]  # causally i < count has j < count

    def coarse(self, block: int) -> Pattern:
        return Rows(-(-self.count // block)) if self.last == 0 else super().coarse(block)

    @property
    def needs_end(self) -> bool:
        return self.last > 0


@dataclass(frozen=True, repr=False)
class Global(Pattern):
    """The first `count` tokens, and the last `last`, see all and are seen by all: `Columns` and `Rows`."""

    count: int
    last: int = 0

    def __post_init__(self) -> None:
        require_ends(self, self.count, self.last)

    @property
    def union(self) -> Pattern:
        return Columns(self.count, self.last) | Rows(self.count, self.last)

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return self.union.allows(i, j, n)

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        both = Columns(self.count, self.last) if causal else self.union  # causally its columns hold its rows
        return both.parts(length=length, n=n, causal=causal, unit=unit)

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        return Columns(self.count, self.last).reach(i, length=length)

    def coarse(self, block: int) -> Pattern:
        return Global(-(-self.count // block)) if self.last == 0 else super().coarse(block)

    @property
    def needs_end(self) -> bool:
        return self.last > 0


@dataclass(frozen=True, repr=False)
class Random(Pattern):
    """Each row sees `count` distinct keys, drawn evenly by `seed`; all keys where there are no more.

    Which keys is a pure function of seed, row and length, or of seed and row under `& CAUSAL`, where row i
    draws from the keys up to itself.
    """

    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole("Random", count=(self.count, 1), seed=(self.seed, 0))
        if self.count > MOST_DRAWS:
            raise ValueError(
                f"Random: count must be at most {MOST_DRAWS:,}, not {self.count:,}; denser needs no pattern"
            )

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        i, n = torch.broadcast_tensors(i, n)
        drawn = draws(i, among=n, count=self.count, seed=self.seed).unbind(-1)
        found = drawn[0] == j
        for other in drawn[1:]:
            found = found | (other == j)
        return found

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        i = torch.arange(length, device=n.device)[None]
        among = i + 1 if causal else n[:, None]
        i, among = torch.broadcast_tensors(i, among)
        keys = draws(i, among=among, count=self.count, seed=self.seed)
        return [Scattered(covers=self.allows, keys_at=keys)]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        return [Reach(draws(i, among=i + 1, count=self.count, seed=self.seed), self.allows)]


@dataclass(frozen=True, repr=False)
class Ring(Pattern):
    """Neighbours on a circle of the tokens from `start` on, last beside first: `width` on either side."""

    width: int
    start: int = 0

    def __post_init__(self) -> None:
        require_whole("Ring", width=(self.width, 0), start=(self.start, 0))

    def _near(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return ((i - j).abs() <= self.width) & (i >= self.start) & (j >= self.start)

    def _around(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        around = n - self.start - (i - j).abs()
        return (around <= self.width) & (i >= self.start) & (j >= self.start)

    def allows(self, i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
        return self._near(i, j, n) | self._around(i, j, n)

    def parts(self, *, length: int, n: Int[Tensor, " b"], causal: bool, unit: int) -> list[Part]:
        near = band(self._near, self.width, length=length, causal=False, unit=unit)
        first = torch.arange(min(self.width, length), device=n.device)[None]
        last, first = n[:, None] - 1 - first, self.start + first
        if first.shape[1] == 0:
            return [near]

        def opens(i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
            return self._around(i, j, n) & (i < j)

        def closes(i: Positions, j: Positions, n: Positions) -> Bool[Tensor, "*_"]:
            return self._around(i, j, n) & (i > j)

        # i = j with everything around the circle: a ring shorter than its width, where `near` holds all
        return [
            near,
            Picked(covers=opens, queries_at=first, keys_at=last),
            Picked(covers=closes, queries_at=last, keys_at=first),
        ]

    def reach(self, i: Int[Tensor, "b t"], *, length: int) -> list[Reach]:
        raise ValueError(f"{self!r} closes at the end, which a stream does not know; use Local({self.width})")

    @property
    def needs_end(self) -> bool:
        return True


def band(covers: Predicate, width: int, *, length: int, causal: bool, unit: int, stride: int = 1) -> Banded:
    """Tiles for `width` keys on either side among every `stride`-th token."""
    own = -(-length // stride)
    block = max(1, min(own, max(width, SMALLEST_TILE // unit), LARGEST_TILE // unit))
    before = -(-width // block)
    after = 0 if causal else before
    if before + 1 + after >= -(-own // block):
        block, before, after = own, 0, 0
    return Banded(covers=covers, block=block, before=before, after=after, stride=stride)


def backwards(i: Int[Tensor, "b t"], *, count: int, length: int, stride: int = 1) -> Int[Tensor, "b t c"]:
    """Row i itself and every `stride`-th key before it, `count` in all, as far as `length` can reach."""
    count = min(count, -(-length // stride))
    return i[..., None] - stride * torch.arange(count, device=i.device)


def ends(
    pattern: Columns | Rows, first: Predicate, last: Predicate, *, length: int, n: Int[Tensor, " b"]
) -> list[tuple[Predicate, Int[Tensor, "#b _"]]]:
    """The places of the first and of the last tokens, with what each covers."""
    found = []
    if pattern.count:
        found.append((first, torch.arange(min(pattern.count, length), device=n.device)[None]))
    if pattern.last:
        behind = torch.arange(min(pattern.last, length), device=n.device)
        found.append((last, n[:, None] - 1 - behind))
    return found


def require_ends(pattern: Columns | Rows | Global, count: int, last: int) -> None:
    require_whole(type(pattern).__name__, count=(count, 0), last=(last, 0))
    if count + last == 0:
        raise ValueError(f"{pattern!r} holds no token: count or last must be at least 1")


def require_columns(pattern: Summaries | Fixed, stride: int, columns: int, *, before: int = 0) -> None:
    require_whole(type(pattern).__name__, stride=(stride, 1), columns=(columns, 1))
    if columns + before > stride:
        given = "columns and those before" if before else "columns"
        raise ValueError(f"{pattern!r}: {given} must not be more than the stride, {stride}")
