"""What a run is made of: rows, in the order in which they are measured, and on what scale."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from benchmarks.cuda.targets import PASSES, WORKS, Passes, Work

LENGTHS = {True: (4096, 32768), False: (1024, 4096, 16384, 32768, 131072)}  # of mechanisms, by `quick`
CONTEXT = 32768  # tokens before the one that is decoded
TRAINED = {True: (4096, 32768), False: (4096, 16384, 32768)}
PRECISIONS = {
    True: (("bfloat16", 64),),
    False: tuple((dtype, d) for dtype in ("bfloat16", "float32", "float16") for d in (64, 128, 32)),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Where rows are measured, and how large they are.

    shrink: by which lengths are divided.
    seconds: of timing a row, where five rounds take less.
    row_s: that a row may take, its compilation included.
    """

    device: str
    batch: int
    heads: int
    width: int
    shrink: int
    seconds: float
    row_s: float

    def tokens(self, length: int) -> int:
        return length // self.shrink


CARD = Scale(device="cuda", batch=4, heads=8, width=64, shrink=1, seconds=0.3, row_s=120.0)
WHOLE = replace(CARD, seconds=1.0, row_s=900.0)  # without --quick
REHEARSAL = Scale(device="cpu", batch=2, heads=2, width=16, shrink=128, seconds=0.01, row_s=60.0)


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """A share of the Triton kernels that will be launched."""

    dtype: str
    width: int
    share: int
    of: int

    @property
    def name(self) -> str:
        return f"compiled {self.dtype} {self.width} {self.share + 1}/{self.of}"


@dataclass(frozen=True, kw_only=True)
class Check:
    """A backend's numbers beside the definition in float64."""

    work: str
    backend: str
    dtype: str
    width: int

    @property
    def name(self) -> str:
        return f"{self.work} right {self.backend} {self.dtype} {self.width}"


@dataclass(frozen=True, kw_only=True)
class Race:
    """Times of all who take part in a work at one length."""

    work: str
    passes: Passes
    length: int

    @property
    def name(self) -> str:
        return f"{self.work} {self.passes} {self.length}"


Row = Compilation | Check | Race
KINDS: Mapping[str, type[Row]] = {kind.__name__: kind for kind in (Compilation, Check, Race)}


def to_json(row: Row) -> dict[str, Any]:
    return {"kind": type(row).__name__, **asdict(row)}


def from_json(fields: Mapping[str, Any]) -> Row:
    return KINDS[fields["kind"]](**{name: value for name, value in fields.items() if name != "kind"})


def find(name: str) -> Work:
    return next(work for work in WORKS if work.name == name)


def selected(only: Sequence[str]) -> list[Work]:
    """Those whose names begin so, or all."""
    return [work for work in WORKS if not only or any(work.name.startswith(start) for start in only)]


def compilations(*, quick: bool, shares: int) -> list[Compilation]:
    return [
        Compilation(dtype=dtype, width=width, share=share, of=shares)
        for dtype, width in PRECISIONS[quick]
        for share in range(shares)
    ]


def checks(work: Work, *, quick: bool) -> list[Check]:
    """Of the mechanism in its form, which padded sequences, steps and whole models have in common."""
    form = (work.attention, work.options, work.causal)
    first = next(other for other in WORKS if (other.attention, other.options, other.causal) == form)
    return [
        Check(work=first.name, backend=backend, dtype=dtype, width=width)
        for dtype, width in PRECISIONS[quick]
        for backend in work.backends
    ]


def races(work: Work, *, quick: bool) -> list[Race]:
    """In short those that targets ask for, where there are some."""
    lengths = {"mechanism": LENGTHS[quick], "decoding": (CONTEXT,)}.get(work.kind, TRAINED[quick])
    asked = {target.length for target in work.targets} if quick else ()
    return [
        Race(work=work.name, passes=passes, length=length)
        for length in lengths
        if not asked or length in asked
        for passes in PASSES[work.kind]
    ]


def parts(works: Sequence[Work]) -> list[list[Work]]:
    """Those that run in one process: neighbours that the same backends serve."""
    return [list(own) for _, own in groupby(works, lambda work: (work.kind, work.backends))]
