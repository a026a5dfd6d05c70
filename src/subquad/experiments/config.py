"""What users ask for, with every default in one place.

No torch: `subquad compare --help` reads its defaults here.
"""

from dataclasses import dataclass
from math import inf

# At 512 events two segments at most are in long-term memory: 128 bumps hold what 512 would, in less time.
ATTENTION = ("softmax", "linear", "performer", "infinity:basis=128,samples=128")
LENGTHS = (512, 1024, 2048, 4096, 8192)
MULTIPLES = (1, 2, 4, 8, 16)  # of a comparison's length: those of its bench unless it is given others
CELL = 300.0  # seconds for one cell of a comparison's bench: what takes longer has answered
DTYPES = ("float32", "bfloat16", "float16", "float64")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")  # of Lightning Fabric


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, on what, and how. The defaults take about ten minutes on two CPU cores."""

    attention: tuple[str, ...] = ATTENTION  # "NAME" or "NAME:option=value,…"
    task: str = "transactions"  # "NAME" or "NAME:option=value,…"
    target: str | None = None  # None: the task's first, or what the schema says
    length: int | None = None  # tokens of a sequence at most; None: what the task says
    steps: int = 200
    seeds: int = 1
    batch: int = 16
    dim: int = 64
    depth: int = 2
    heads: int = 4
    workers: int = 1  # fits at a time, which share the threads
    executor: str = "local"  # what runs them: processes of this machine, or another package's by its name
    positions: str = "sinusoidal"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    dropout: float = 0.1
    precision: str = "32-true"
    device: str = "auto"  # "cpu", "cuda", "mps"; auto: CUDA where there is one, else the CPU
    bench: bool = True  # whether time and memory by length are measured too
    lengths: tuple[int, ...] = ()  # of the bench; none given: 1, 2, 4, 8 and 16 times `length`
    timeout: float = 6 * 3600.0  # seconds for one run

    def __post_init__(self) -> None:
        if self.length is not None:
            _at_least_one("length", self.length)
        for name in ("steps", "seeds", "batch", "dim", "depth", "heads", "workers", "accumulate"):
            _at_least_one(name, getattr(self, name))
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, and {self.dim} is none of {self.heads}")
        for name in ("learning_rate", "clip", "timeout"):
            _positive(name, getattr(self, name))
        if not 0 <= self.weight_decay < inf:
            raise ValueError(f"weight_decay must be zero or a positive number, not {self.weight_decay!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")
        _one_of("precision", self.precision, PRECISIONS)
        _each_once(self.lengths)
        if self.lengths and not self.bench:
            raise ValueError(f"lengths {list(self.lengths)} are those of the bench, which is left out")


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
        if not self.lengths:
            raise ValueError("give at least one length")
        _each_once(self.lengths)
        _one_of("dtype", self.dtype, DTYPES)
        _positive("timeout", self.timeout)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def _positive(name: str, value: float) -> None:
    if not 0 < value < inf:
        raise ValueError(f"{name} must be a positive number, not {value!r}")


def _each_once(lengths: tuple[int, ...]) -> None:
    for length in lengths:
        _at_least_one("length", length)
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"give each length once, not {list(lengths)}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; there are {', '.join(known)}")
