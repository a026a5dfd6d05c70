"""What a record and a comparison hold: the types that those who write them and those who read them share.

Only what is relied upon is named: other fields may stand beside it, such as those of a later version.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad.documents import validated

VERSION = 4  # of records: raise it when figures change their meaning or records their shape; older ones lapse
COMPARISON_VERSION = 5  # of comparison.json: raise it when that changes its shape; records stay
MAX_NUMBER = 1e100  # a number: its square is one too


def check_bounds(number: float) -> float:
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise ValueError(f"should be a finite number up to {MAX_NUMBER:g}")
    return number


Key = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Number = Annotated[float, AfterValidator(check_bounds)]
Amount = Annotated[Number, Field(ge=0)]
Options = dict[str, bool | int | float | str]
Status = Literal["ok", "failed", "timeout", "out of memory", "not finite"]
MetricValues = dict[str, Number]  # by metric, and "loss"


class MechanismFields(TypedDict):
    """Which mechanism, in which form."""

    attention: str
    options: Options
    causal: bool


class DataFields(TypedDict):
    """The examples that runs are about, and how many tokens of each."""

    task: str
    target: str
    options: Options
    fingerprint: str
    length: Positive


class TrainingFields(TypedDict):
    steps: Positive
    batch: Positive
    accumulate: Positive
    carry: NotRequired[Count]  # none in records of before it: 0
    devices: NotRequired[Count]  # none in records of before it: 1


class PlaceFields(TypedDict):
    device: str
    threads: Positive


class FitSpec(TypedDict):
    data: DataFields
    mechanism: MechanismFields
    model: Options
    training: TrainingFields
    place: PlaceFields
    seed: Count


class BaselineSpec(TypedDict):
    data: DataFields
    baseline: str
    seed: Count


class BenchSpec(TypedDict):
    mechanism: MechanismFields
    length: Positive


class CurvePoint(TypedDict):
    step: Count
    examples: Count
    loss: Number
    validation: NotRequired[MetricValues]


class ExampleScores(TypedDict):
    """What each example of the test split adds to the score, and the group that it belongs to."""

    contribution: list[Number]
    group: list[Count]


def equally_long(examples: ExampleScores) -> ExampleScores:
    if len(examples["contribution"]) != len(examples["group"]):
        raise ValueError("contribution and group should be equally long")
    return examples


class PartScore(TypedDict):
    """The metric over some of what was asked, and how much that was; None: these have no such metric."""

    value: Number | None
    count: Count


class BaselineResult(TypedDict):
    test: MetricValues
    breakdown: NotRequired[dict[str, dict[str, PartScore]]]  # by what parts differ in, by the part
    examples: NotRequired[Annotated[ExampleScores, AfterValidator(equally_long)]]


class FitResult(BaselineResult):
    validation: MetricValues
    best_step: Count
    curve: list[CurvePoint]
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
    train_units_per_second: NotRequired[Amount | None]
    train_seconds: NotRequired[Amount]
    peak_mb: NotRequired[Amount | None]
    latency_ms: NotRequired[Latency | None]
    training_peak_mb: NotRequired[Amount | None]
    state_mb: NotRequired[Amount | None]  # of one row, where it is carried


class Timed(TypedDict):
    """Milliseconds of a call, and of fused attention with the same causality."""

    ms: Timing
    reference_ms: Timing
    roofline_ms: NotRequired[Amount]
    peers_ms: NotRequired[dict[str, Timing]]


class MemoryMeasured(TypedDict):
    mb: Amount
    reference_mb: Amount


class StreamMeasured(TypedDict):
    step: Timed
    state: MemoryMeasured


class BenchMeasured(TypedDict):
    forward: Timed
    forward_backward: NotRequired[Timed]
    memory: MemoryMeasured


class Machine(TypedDict):
    fingerprint: NotRequired[str]  # none where a run died before it could say


class AnyRecord(TypedDict):
    """What the record of any run holds; `status` says whether it has a result."""

    key: Key
    reason: NotRequired[str]
    seconds: NotRequired[Amount]
    machine: NotRequired[Machine]
    versions: NotRequired[dict[str, str]]
    data: NotRequired[dict[str, Any]]


class FitRecord(AnyRecord):
    spec: FitSpec
    result: FitResult
    measured: FitMeasured


class BaselineRecord(AnyRecord):
    spec: BaselineSpec
    result: BaselineResult
    measured: dict[str, Any]


class BenchRecord(AnyRecord):
    spec: BenchSpec
    result: dict[str, Any]
    measured: BenchMeasured


class StreamRecord(AnyRecord):
    spec: BenchSpec
    result: dict[str, Any]
    measured: StreamMeasured


class FailedRecord(AnyRecord):
    result: Annotated[dict[str, Any], Field(max_length=0)]
    measured: Annotated[dict[str, Any], Field(max_length=0)]


class FailedFit(FailedRecord):
    spec: FitSpec


class FailedBaseline(FailedRecord):
    spec: BaselineSpec


class FailedBench(FailedRecord):
    spec: BenchSpec


class Header(TypedDict):
    kind: Literal["fit", "baseline", "bench", "stream"]
    status: Status


DONE_TYPES = {"fit": FitRecord, "baseline": BaselineRecord, "bench": BenchRecord, "stream": StreamRecord}
FAILED_TYPES = {"fit": FailedFit, "baseline": FailedBaseline, "bench": FailedBench, "stream": FailedBench}


def check_record(record: Mapping[str, Any]) -> None:
    """Raise `ValueError`, naming the field, for what is no record."""
    require_version(record, VERSION)
    header = validated(Header, record)
    types = DONE_TYPES if header["status"] == "ok" else FAILED_TYPES
    validated(types[header["kind"]], record)


def require_version(document: Mapping[str, Any], expected: int) -> None:
    """Raise `ValueError` for a document whose shape is another version's."""
    if (version := document.get("version")) != expected:
        raise ValueError(f"it has version {version!r}, and this version of subquad reads {expected}")


class MechanismRow(MechanismFields):
    label: str


class Refusal(TypedDict):
    """A mechanism that cannot take a task, and why."""

    label: str
    reason: str


class TaskKeys(TypedDict):
    baseline: list[Key]
    fit: list[Key]


class BenchKeys(TypedDict):
    bench: list[Key]


class History(TypedDict):
    median: Number
    longest: Count


class SplitSummary(TypedDict):
    examples: Count
    entities: NotRequired[Count]
    history: NotRequired[History]
    classes: NotRequired[dict[str, Count]]


class DataSummary(TypedDict, total=False):
    question: str
    splits: Annotated[dict[Literal["train", "validation", "test"], SplitSummary], Field(min_length=3)]


class ComparedTask(TypedDict):
    """One task of a comparison: its data, and the runs on them."""

    label: str  # what it is called among the comparison's tasks
    title: str
    task: str  # with its options and its target, as users type it
    data: DataFields
    summary: NotRequired[DataSummary]
    unit: NotRequired[str]  # what a sequence is made of: "event", "token"; none: "event"
    metric: str
    metric_label: NotRequired[str]  # in sentences; none: the metric itself
    higher_is_better: bool
    balanced: NotRequired[bool]  # whether the metric weighs classes alike; none: it does not
    rows: list[MechanismRow]
    refusals: list[Refusal]
    keys: TaskKeys


class PluginFields(TypedDict):
    """Code of another package that a comparison had at hand."""

    kind: str
    name: str
    package: str
    version: str


class Comparison(TypedDict):
    """What comparison.json holds: tasks, the settings that they share, and the keys of all runs."""

    tasks: Annotated[list[ComparedTask], Field(min_length=1)]
    attention: list[str]  # as users type it
    length: Positive | None  # that is asked for; None: each task's own
    seeds: Positive
    model: Options
    preset: NotRequired[str | None]  # the published skeleton that `model` is, in full
    training: TrainingFields
    place: PlaceFields
    workers: Positive
    plugins: NotRequired[list[PluginFields]]  # none in those of before it
    bench: bool
    lengths: list[Positive]
    rows: list[MechanismRow]  # of the bench: every form that a task asks for
    keys: BenchKeys


def check_comparison(document: Mapping[str, Any]) -> None:
    """Raise `ValueError`, naming the field, for what is no comparison."""
    require_version(document, COMPARISON_VERSION)
    validated(Comparison, document)
    require_once("tasks", [task["label"] for task in document["tasks"]])
    for task in document["tasks"]:
        labels = [row["label"] for row in (*task["rows"], *task["refusals"])]
        require_once("rows", labels)
        if unlike := set(labels) ^ set(document["attention"]):
            raise ValueError(f"rows: {min(unlike)!r} is not among the rows of every task")


def require_once(field: str, labels: Sequence[str]) -> None:
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"{field}: {repeated[0]!r} stands there twice")
