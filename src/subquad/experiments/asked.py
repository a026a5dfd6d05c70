"""What users ask for, with every default in one place.

No torch: `subquad compare --help` reads its defaults here.
"""

from dataclasses import dataclass
from pathlib import Path

# At 512 events two segments at most are in long-term memory: 128 bumps hold what 512 would, in less time.
ATTENTION = ("softmax", "linear", "performer", "infinity:basis=128,samples=128")
LENGTHS = (512, 1024, 2048, 4096, 8192)
CELL = 300.0  # seconds for one cell of a comparison's bench: what takes longer has answered
DTYPES = ("float32", "bfloat16", "float16", "float64")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")  # of Lightning Fabric


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, on what, and how. The defaults take about ten minutes on two CPU cores."""

    attention: tuple[str, ...] = ATTENTION  # "NAME" or "NAME:option=value,…"
    task: str = "transactions"
    target: str | None = None  # None: the task's first, or what the schema says
    schema: Path | None = None  # own data; the task is then "own"
    length: int = 512  # events of a history at most, the latest; more than the longest has means all
    steps: int = 200
    seeds: int = 1
    batch: int = 16
    dim: int = 64
    depth: int = 2
    heads: int = 4
    workers: int = 1  # fits at a time, which share the threads
    positions: str = "sinusoidal"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    dropout: float = 0.1
    precision: str = "32-true"
    device: str = "auto"  # "cpu", "cuda", "mps"; auto: CUDA where there is one, else the CPU
    lengths: tuple[int, ...] = LENGTHS  # of the bench
    timeout: float = 6 * 3600.0  # seconds for one run

    def __post_init__(self) -> None:
        for name in ("length", "steps", "seeds", "batch", "dim", "depth", "heads", "workers", "accumulate"):
            _at_least_one(name, getattr(self, name))
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, and {self.dim} is none of {self.heads}")
        _one_of("precision", self.precision, PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Which mechanisms are timed at which lengths, beside torch's fused attention."""

    attention: tuple[str, ...] = ATTENTION
    lengths: tuple[int, ...] = LENGTHS
    heads: int = 4
    head_dim: int = 32
    batch: int = 1
    dtype: str = "float32"
    causal: bool = False  # False: the bidirectional form where there is one
    peers: bool = False  # whether other packages are timed too, where they are installed
    device: str = "auto"
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "batch"):
            _at_least_one(name, getattr(self, name))
        for length in self.lengths:
            _at_least_one("length", length)
        if not self.lengths or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"give each length once, and at least one, not {list(self.lengths)}")
        _one_of("dtype", self.dtype, DTYPES)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; there are {', '.join(known)}")
