"""What a record and a comparison hold: the types that those who write them and those who read them share.

Only what is relied upon is named: other fields may stand beside it, such as those of a later version.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad.documents import validated

LARGEST = 1e100  # a number: its square is one too


def bounded(number: float) -> float:
    if not -LARGEST <= number <= LARGEST:
        raise ValueError(f"should be a finite number up to {LARGEST:g}")
    return number


Key = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Number = Annotated[float, AfterValidator(bounded)]
Amount = Annotated[Number, Field(ge=0)]
Options = dict[str, bool | int | float | str]
Status = Literal["ok", "failed", "timeout", "out of memory", "not finite"]
Scores = dict[str, Number]  # by metric, and "loss"


class Named(TypedDict):
    """Which mechanism, in which form."""

    attention: str
    options: Options
    causal: bool


class FitAsked(Named):
    seed: Count


class BaselineAsked(TypedDict):
    baseline: str
    seed: Count


class BenchAsked(Named):
    length: Positive


class Point(TypedDict):
    step: Count
    examples: Count
    loss: Number
    validation: NotRequired[Scores]


class Examples(TypedDict):
    """What each example of the test split adds to the score, and the group that it belongs to."""

    contribution: list[Number]
    group: list[Count]


def in_step(examples: Examples) -> Examples:
    if len(examples["contribution"]) != len(examples["group"]):
        raise ValueError("contribution and group should be equally long")
    return examples


class BaselineFound(TypedDict):
    test: Scores
    examples: NotRequired[Annotated[Examples, AfterValidator(in_step)]]


class FitFound(BaselineFound):
    validation: Scores
    best_step: Count
    curve: list[Point]
    parameters: Annotated[
        dict[Literal["total", "attention", "grows_with_length"], Count], Field(min_length=3)
    ]
    form: Literal["causal", "bidirectional"]
    options: dict[str, Any]  # defaults too, whatever they are


class Timing(TypedDict):
    median: Amount
    low: Amount  # quartiles
    high: Amount
    repeats: Count


class Latency(Timing):
    length: Positive


class FitMeasured(TypedDict):
    train_examples_per_second: NotRequired[Amount | None]
    train_events_per_second: NotRequired[Amount | None]
    train_seconds: NotRequired[Amount]
    peak_mb: NotRequired[Amount | None]
    latency_ms: NotRequired[Latency | None]
    training_peak_mb: NotRequired[Amount | None]


class Timed(TypedDict):
    """Milliseconds of a call, and of fused attention with the same causality."""

    ms: Timing
    reference_ms: Timing
    roofline_ms: NotRequired[Amount]
    peers_ms: NotRequired[dict[str, Timing]]


class Memory(TypedDict):
    mb: Amount
    reference_mb: Amount


class BenchMeasured(TypedDict):
    forward: Timed
    forward_backward: NotRequired[Timed]
    memory: Memory


class Machine(TypedDict):
    fingerprint: NotRequired[str]  # none where a run died before it could say


class Recorded(TypedDict):
    """What the record of any run holds; `status` says whether it has a result."""

    key: Key
    version: NotRequired[Positive]
    reason: NotRequired[str]
    seconds: NotRequired[Amount]
    machine: NotRequired[Machine]
    versions: NotRequired[dict[str, str]]
    data: NotRequired[dict[str, Any]]


class FitRecord(Recorded):
    spec: FitAsked
    result: FitFound
    measured: FitMeasured


class BaselineRecord(Recorded):
    spec: BaselineAsked
    result: BaselineFound
    measured: dict[str, Any]


class BenchRecord(Recorded):
    spec: BenchAsked
    result: dict[str, Any]
    measured: BenchMeasured


class Failed(Recorded):
    result: Annotated[dict[str, Any], Field(max_length=0)]
    measured: Annotated[dict[str, Any], Field(max_length=0)]


class FailedFit(Failed):
    spec: FitAsked


class FailedBaseline(Failed):
    spec: BaselineAsked


class FailedBench(Failed):
    spec: BenchAsked


class Header(TypedDict):
    kind: Literal["fit", "baseline", "bench"]
    status: Status


DONE = {"fit": FitRecord, "baseline": BaselineRecord, "bench": BenchRecord}
FAILED = {"fit": FailedFit, "baseline": FailedBaseline, "bench": FailedBench}


def check_record(record: Mapping[str, Any]) -> None:
    """Raise `ValueError`, naming the field, for what is no record."""
    header = validated(Header, record)
    kinds = DONE if header["status"] == "ok" else FAILED
    validated(kinds[header["kind"]], record)


class Row(Named):
    label: str


class Keys(TypedDict):
    baseline: list[Key]
    fit: list[Key]
    bench: list[Key]


class History(TypedDict):
    median: Number
    longest: Count


class Split(TypedDict):
    examples: Count
    entities: NotRequired[Count]
    history: NotRequired[History]
    classes: NotRequired[dict[str, Count]]


class Summary(TypedDict, total=False):
    question: str
    splits: dict[str, Split]


class Comparison(TypedDict):
    """What comparison.json holds: what was asked, and the runs that answer it."""

    title: str
    task: str
    target: str
    schema: NotRequired[str | None]
    data: NotRequired[str]
    metric: str
    higher_is_better: bool
    length: Positive
    seeds: Positive
    steps: NotRequired[Positive]
    batch: NotRequired[Positive]
    accumulate: NotRequired[Positive]
    summary: NotRequired[Summary]
    rows: list[Row]
    keys: Keys


def check_comparison(document: Mapping[str, Any]) -> None:
    """Raise `ValueError`, naming the field, for what is no comparison."""
    validated(Comparison, document)
    labels = [row["label"] for row in document["rows"]]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"rows: {twice[0]!r} stands there twice")
