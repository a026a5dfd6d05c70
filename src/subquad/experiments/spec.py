"""What a run is asked to do, in full: frozen, nested, JSON through and through, and the name of its record.

Two runs with equal specs are one run. Nothing is left to be settled later: "the best device" or "all
threads" are resolved before a spec is made, since another machine would resolve them otherwise.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from subquad import records
from subquad.config import ModelConfig
from subquad.experiments.config import InputsConfig, TrainingConfig
from subquad.notation import Option, written
from subquad.recorded import VERSION, check_record

if TYPE_CHECKING:
    from subquad.executors import Tell

S = TypeVar("S")

# options that earlier versions lacked: at its default, one leaves a run the name it had
ADDED = ("carry", "devices")


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


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The examples of a task.

    options: the task's. They may say where files lie, and make no two specs differ: the fingerprint does.
    fingerprint: of the examples and of their splits.
    length: at most this many tokens of a sequence, the latest.
    """

    task: str
    target: str
    options: Mapping[str, Option] = field(compare=False)
    fingerprint: str
    length: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run computes: "cpu", "cuda" or "mps", and with how many threads."""

    device: str
    threads: int


class Spec:
    """What all specs share: they become JSON, JSON becomes them again, and an executor runs them."""

    kind: ClassVar[str]
    version: ClassVar[int] = VERSION
    timed: ClassVar[bool] = False  # whether the result is how long something takes
    place: Place

    @property
    def threads(self) -> int:
        return self.place.threads

    @property
    def key(self) -> str:
        """Worked out once: whoever watches many runs asks for it at each of their steps."""
        known = vars(self)
        if "_key" not in known:
            known["_key"] = records.key(self.kind, self.version, compared(self))
        return known["_key"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # pyright: ignore[reportArgumentType]  # every spec is a dataclass

    @classmethod
    def from_json(cls: type[S], document: Mapping[str, Any]) -> S:
        return nested(cls, document)

    def check(self, record: records.Record) -> None:
        """Raise `ValueError`, naming the field, for what is no record of a run."""
        check_record(record)


@dataclass(frozen=True, kw_only=True)
class Fit(Spec):
    """Train a model on a task, test it once, and measure it.

    validate: steps from one validation to the next.
    warmup: steps in which the learning rate rises.
    """

    kind: ClassVar = "fit"

    data: DataSpec
    mechanism: MechanismSpec
    model: ModelConfig
    training: TrainingConfig
    validate: int
    warmup: int
    seed: int
    place: Place

    @property
    def label(self) -> str:
        return f"{self.mechanism.label} · seed {self.seed}"

    def run(self, store: records.Store, tell: "Tell") -> dict[str, Any]:
        from subquad.experiments.run import run_fit

        return run_fit(self, store, tell)


@dataclass(frozen=True, kw_only=True)
class Baseline(Spec):
    """What a model that knows nothing of sequences reaches on the same examples, wherever it computes.

    baseline: its name, such as "majority" or "boosting".
    """

    kind: ClassVar = "baseline"

    data: DataSpec
    baseline: str
    seed: int
    place: Place = field(compare=False)

    @property
    def label(self) -> str:
        return f"baseline {self.baseline} · seed {self.seed}"

    def run(self, store: records.Store, tell: "Tell") -> dict[str, Any]:
        from subquad.experiments.run import run_baseline

        return run_baseline(self)


@dataclass(frozen=True, kw_only=True)
class Bench(Spec):
    """Time and memory of one mechanism at one length, beside torch's fused attention.

    peers: whether other packages are timed too.
    """

    kind: ClassVar = "bench"
    timed: ClassVar = True

    mechanism: MechanismSpec
    length: int
    inputs: InputsConfig
    peers: bool
    place: Place

    @property
    def label(self) -> str:
        return f"bench {self.mechanism.label} · {self.length:,} tokens"

    def run(self, store: records.Store, tell: "Tell") -> dict[str, Any]:
        from subquad.experiments.run import run_bench

        return run_bench(self)


@dataclass(frozen=True, kw_only=True)
class Stream(Spec):
    """Time of the next token of a stream, and the size of its state, beside attention over a cache.

    length: tokens that went before.
    """

    kind: ClassVar = "stream"
    timed: ClassVar = True

    mechanism: MechanismSpec
    length: int
    inputs: InputsConfig
    place: Place

    @property
    def label(self) -> str:
        return f"stream {self.mechanism.label} · {self.length:,} tokens"

    def run(self, store: records.Store, tell: "Tell") -> dict[str, Any]:
        from subquad.experiments.run import run_stream

        return run_stream(self)


AnySpec = Fit | Baseline | Bench | Stream


def compared(spec: Any) -> dict[str, Any]:
    """The fields by which specs are equal or not, and those of the parts within."""
    values = {
        each.name: value
        for each in fields(spec)
        if each.compare and not ((value := getattr(spec, each.name)) == each.default and each.name in ADDED)
    }
    return {name: compared(value) if is_dataclass(value) else value for name, value in values.items()}


def nested(kind: type[S], document: Mapping[str, Any]) -> S:
    """The dataclass that `asdict` made a document of."""
    kinds: dict[str, Any] = {each.name: each.type for each in fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(
        **{
            name: nested(kinds[name], value) if is_dataclass(kinds[name]) else value
            for name, value in document.items()
        }
    )
