"""What a run is asked to do, in full: frozen, JSON through and through, and the name of its record.

Two runs with equal specs are one run. Nothing is left to be settled later: "the best device" or "all
threads" are resolved before a spec is made, since another machine would resolve them otherwise.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from subquad import records
from subquad.experiments.notation import Option, written

if TYPE_CHECKING:
    from subquad.executors import Tell

S = TypeVar("S", bound="Spec")


@dataclass(frozen=True, kw_only=True)
class MechanismSpec:
    """A mechanism with its options, in one of its forms: what a row of the table stands for."""

    attention: str
    options: Mapping[str, Option] = field(default_factory=dict)
    causal: bool = False

    @property
    def label(self) -> str:
        """What users type for it: "performer:features=128"."""
        return written(self.attention, self.options)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "label": self.label}


class Spec:
    """What all specs share: they become JSON, JSON becomes them again, and an executor runs them."""

    kind: ClassVar[str]
    version: ClassVar[int]  # raise it when figures change their meaning: older records then lapse
    timed: ClassVar[bool] = False  # whether the result is how long something takes
    not_in_key: ClassVar[tuple[str, ...]] = ()  # fields that no result depends on, such as where a file lies

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # pyright: ignore[reportArgumentType]  # every spec is a dataclass

    @classmethod
    def from_json(cls: type[S], fields: Mapping[str, Any]) -> S:
        return cls(**fields)

    def check(self, record: records.Record) -> None:
        """Raise `ValueError`, naming the field, for what is no record of a run."""
        from subquad.recorded import check_record

        check_record(record)

    @property
    def key(self) -> str:
        asked = {name: value for name, value in self.to_json().items() if name not in self.not_in_key}
        return records.key(self.kind, self.version, asked)


@dataclass(frozen=True, kw_only=True)
class Fit(Spec):
    """Train a classifier of event sequences, test it once, and measure it."""

    kind: ClassVar = "fit"
    version: ClassVar = 3
    not_in_key: ClassVar = ("task_options",)

    task: str
    target: str
    task_options: dict[str, Option]  # the fingerprint stands for them
    data: str  # fingerprint of the examples and of their splits
    length: int  # at most this many events of a history, the latest
    attention: str
    options: dict[str, Option]
    causal: bool
    dim: int
    depth: int
    heads: int
    positions: str
    batch: int  # examples per forward; a step takes `accumulate` of them
    steps: int
    validate: int  # steps from one validation to the next
    learning_rate: float  # the highest: reached after `warmup` steps, zero at the end
    warmup: int
    weight_decay: float
    clip: float  # largest norm of a step's gradient
    accumulate: int
    dropout: float
    precision: str  # "32-true", "bf16-mixed" and the others of Lightning Fabric
    device: str  # "cpu", "cuda", "mps"
    seed: int
    threads: int

    @property
    def label(self) -> str:
        return f"{MechanismSpec(attention=self.attention, options=self.options).label} · seed {self.seed}"

    def run(self, store: records.Store, tell: "Tell") -> dict[str, Any]:
        from subquad.experiments.run import run_fit

        return run_fit(self, store, tell)


@dataclass(frozen=True, kw_only=True)
class Baseline(Spec):
    """What a model that knows nothing of sequences reaches on the same examples."""

    kind: ClassVar = "baseline"
    version: ClassVar = 3
    not_in_key: ClassVar = ("task_options", "threads")

    task: str
    target: str
    task_options: dict[str, Option]
    data: str
    length: int
    baseline: str  # "majority" | "boosting"
    seed: int
    threads: int

    @property
    def label(self) -> str:
        return f"baseline {self.baseline} · seed {self.seed}"

    def run(self, store: records.Store, tell: "Tell") -> dict[str, Any]:
        from subquad.experiments.run import run_baseline

        return run_baseline(self)


@dataclass(frozen=True, kw_only=True)
class Bench(Spec):
    """Time and memory of one mechanism at one length, beside torch's fused attention."""

    kind: ClassVar = "bench"
    version: ClassVar = 3
    timed: ClassVar = True

    attention: str
    options: dict[str, Option]
    causal: bool
    length: int
    heads: int
    head_dim: int
    batch: int
    dtype: str  # "float32", "bfloat16", "float16"
    backward: bool
    device: str
    threads: int
    peers: bool = False  # whether other packages are timed too

    def to_json(self) -> dict[str, Any]:
        """`peers` is left out where it is False, so that older records keep their keys."""
        asked = super().to_json()
        return asked if self.peers else {name: value for name, value in asked.items() if name != "peers"}

    @property
    def label(self) -> str:
        return f"bench {MechanismSpec(attention=self.attention, options=self.options).label} · {self.length:,} tokens"

    def run(self, store: records.Store, tell: "Tell") -> dict[str, Any]:
        from subquad.experiments.run import run_bench

        return run_bench(self)


AnySpec = Fit | Baseline | Bench
