"""What was measured of each candidate for a purpose: speed beside fused softmax, memory, and exercises.

Times of different candidates come from different moments, so that what is set against each other is how many
times as fast as fused softmax, timed in the same turns, each of them is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from subquad.records import Record
from subquad.report import formats
from subquad.report.leaderboard import REFERENCE
from subquad.report.question import Entry, entries_of, identity
from subquad.report.runs import machines
from subquad.report.scores import compared, scores
from subquad.report.statistics import SeedScores, Summary, summary

MIN_ROUNDS = 3  # of a timing, to know its spread
UNKNOWN_SPREAD = 1.5  # what is taken for it where there were fewer: either may be so many times as fast
WORTH = 1.1  # times as fast: less is no reason to give up softmax
KEEPS = 0.9  # of what softmax has above the baseline: less is a loss


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long a call takes, and how many times as fast as fused softmax that is.

    low, high: of the ratio, by the quartiles of both.
    """

    ms: float
    reference_ms: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        return self.reference_ms / self.ms

    @property
    def clear(self) -> bool:
        """Whether it is faster beyond the spread, by what is worth it."""
        return self.low > WORTH

    def alike(self, other: "Speed") -> bool:
        """Whether the two cannot be told apart."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, kw_only=True)
class ExerciseScore:
    """What a candidate reached in an exercise, beside softmax and the best baseline.

    share: of what softmax has above the baseline. None: softmax does not clear it, so that nothing is told.
    apart: whether the test examples tell candidate and softmax apart.
    """

    exercise: str
    metric: str
    score: Summary
    reference: Summary
    share: float | None
    apart: bool

    @property
    def loses(self) -> bool:
        return self.share is not None and self.share < KEEPS and self.apart


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A mechanism, and what was measured of it at the length that is asked for.

    speeds: by what is timed, "forward_backward", "forward" or "step".
    curves: by the same, the speed at each length, the shortest first.
    memory_mb: 10 ** 6 bytes of a training step of one layer. None: not measured.
    state_mb: of a stream's state. None: not measured.
    failure: why there is no measurement, "" where there is one.
    """

    label: str
    form: str
    speeds: Mapping[str, Speed]
    curves: Mapping[str, Mapping[int, Speed]]
    memory_mb: float | None
    state_mb: float | None
    trained: tuple[ExerciseScore, ...] = ()
    failure: str = ""

    @property
    def loses(self) -> tuple[ExerciseScore, ...]:
        """The exercises in which it does not keep what softmax has."""
        return tuple(each for each in self.trained if each.loses)

    @property
    def keeps(self) -> bool:
        """Whether some exercise told something, and none of them that it loses what softmax has."""
        return any(each.share is not None for each in self.trained) and not self.loses


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What attention is wanted for, and how candidates were measured.

    memory_mb: the limit. None: none.
    refusals: why candidates were not measured, by label.
    exercises: what candidates were trained on, with the tokens of a sequence.
    layer: what was timed, in words.
    machines: where, in words.
    """

    length: int
    streaming: bool
    bounded: bool
    memory_mb: float | None
    steps: int
    seeds: int
    refusals: Mapping[str, str]
    exercises: Mapping[str, int]
    layer: str
    machines: tuple[str, ...]

    @property
    def decisive(self) -> str:
        """What has to be fast."""
        return "step" if self.streaming else "forward_backward"


def wish_of(document: Mapping[str, Any], records: Sequence[Record]) -> Wish:
    """Of the document of a plan, `experiments.choice.Plan.document`, and the records of its runs."""
    inputs, place = document["inputs"], document["place"]
    heads, width, batch = inputs["heads"], inputs["head_dim"], inputs["batch"]
    form = "causal" if document["causal"] else "bidirectional"
    return Wish(
        length=document["length"],
        streaming=document["streaming"],
        bounded=document["bounded"],
        memory_mb=document["memory_mb"],
        steps=document["steps"],
        seeds=document["seeds"],
        refusals=document["refusals"],
        exercises={exercise["label"]: exercise["tokens"] for exercise in document["exercises"]},
        layer=f"one {form} layer of {heads} heads, {width} wide each, batch {batch}, {inputs['dtype']}, on "
        f"{place['device']} with {formats.plural(place['threads'], 'thread')}",
        machines=tuple(str(machine.description.get("cpu", "a machine")) for machine in machines(records)),
    )


def candidates_of(document: Mapping[str, Any], records: Sequence[Record]) -> tuple[Candidate, ...]:
    """Softmax and the candidates, in the order of the document: the simplest first."""
    entries, length = entries_of(document["rows"]), document["length"]
    trained = exercise_scores(document, records)
    mechanisms = [record for record in records if "mechanism" in record["spec"]]
    mine = {
        entry.label: [
            record for record in mechanisms if identity(record["spec"]["mechanism"]) == entry.identity
        ]
        for entry in entries
    }
    done = [record for each in mine.values() for record in each if record["status"] == "ok"]
    softmax, *others = entries
    return (
        _softmax(softmax, done, length, trained.get(softmax.label, ())),
        *(_candidate(entry, mine[entry.label], length, trained.get(entry.label, ())) for entry in others),
    )


def _candidate(
    entry: Entry, records: Sequence[Record], length: int, trained: tuple[ExerciseScore, ...]
) -> Candidate:
    done = [record for record in records if record["status"] == "ok"]
    curves = {name: {n: _speed(*timed[n]) for n in sorted(timed)} for name, timed in _timings(done).items()}
    decisive = [record for record in records if record["spec"].get("length") in (None, length)]
    failed = [
        f"{record['kind']} {record['status']}: {record['reason']}"
        for record in decisive
        if record["status"] != "ok"
    ]
    return Candidate(
        label=entry.label,
        form=entry.form,
        speeds={name: curve[length] for name, curve in curves.items() if length in curve},
        curves=curves,
        memory_mb=next((x["mb"] for x in _sizes(done, "memory", length)), None),
        state_mb=next((x["mb"] for x in _sizes(done, "state", length)), None),
        trained=trained,
        failure=failed[0] if failed else "" if decisive else "not measured yet",
    )


def _softmax(
    entry: Entry, done: Sequence[Record], length: int, trained: tuple[ExerciseScore, ...]
) -> Candidate:
    """Fused softmax itself: medians over what was timed beside it."""
    times: dict[str, list[float]] = {}
    for record in done:
        for name, timed in _timings([record]).items():
            if length in timed:
                times.setdefault(name, []).append(timed[length][1]["median"])
    middle = {name: median(values) for name, values in times.items()}
    memory = [x["reference_mb"] for x in _sizes(done, "memory", length)]
    state = [x["reference_mb"] for x in _sizes(done, "state", length)]
    return Candidate(
        label=entry.label,
        form=entry.form,
        speeds={name: Speed(ms=ms, reference_ms=ms, low=1.0, high=1.0) for name, ms in middle.items()},
        curves={},
        memory_mb=median(memory) if memory else None,
        state_mb=median(state) if state else None,
        trained=trained,
        failure="" if middle else "nothing was measured beside it",
    )


Timing = Mapping[str, float]


def _timings(done: Sequence[Record]) -> dict[str, dict[int, tuple[Timing, Timing]]]:
    """By what is timed, by length: ours, and that of fused softmax."""
    timings: dict[str, dict[int, tuple[Timing, Timing]]] = {}
    for record in done:
        for name in ("forward_backward", "forward", "step"):
            if timed := record["measured"].get(name):
                timings.setdefault(name, {})[record["spec"]["length"]] = timed["ms"], timed["reference_ms"]
    return timings


def _speed(ours: Timing, theirs: Timing) -> Speed:
    ratio = theirs["median"] / ours["median"]
    low, high = theirs["low"] / ours["high"], theirs["high"] / ours["low"]
    if min(ours["repeats"], theirs["repeats"]) < MIN_ROUNDS:
        low, high = min(low, ratio / UNKNOWN_SPREAD), max(high, ratio * UNKNOWN_SPREAD)
    return Speed(ms=ours["median"], reference_ms=theirs["median"], low=low, high=high)


def _sizes(done: Sequence[Record], name: str, length: int) -> list[Mapping[str, float]]:
    """What was measured of memory at that length."""
    return [
        record["measured"][name]
        for record in done
        if record["spec"].get("length") == length and name in record["measured"]
    ]


def exercise_scores(
    document: Mapping[str, Any], records: Sequence[Record]
) -> dict[str, tuple[ExerciseScore, ...]]:
    """What each row reached in the exercises, by label."""
    labels = {entry.identity: entry.label for entry in entries_of(document["rows"])}
    reached: dict[str, list[ExerciseScore]] = {}
    for exercise in document["exercises"]:
        mine = [
            record
            for record in records
            if record["status"] == "ok"
            and record["kind"] in ("fit", "baseline")
            and record["spec"]["data"]["fingerprint"] == exercise["fingerprint"]
        ]
        fits: dict[str, list[Record]] = {}
        baselines: dict[str, list[Record]] = {}
        for record in mine:
            if record["kind"] == "fit":
                fits.setdefault(labels[identity(record["spec"]["mechanism"])], []).append(record)
            else:
                baselines.setdefault(record["spec"]["baseline"], []).append(record)
        metric = exercise["metric"]
        rows = {label: scores(each, metric) for label, each in fits.items()}
        known = {name: scores(each, metric) for name, each in baselines.items()}
        for label, each in _beside(exercise, rows, known).items():
            reached.setdefault(label, []).append(each)
    return {label: tuple(each) for label, each in reached.items()}


def _beside(
    exercise: Mapping[str, Any], rows: Mapping[str, SeedScores], baselines: Mapping[str, SeedScores]
) -> dict[str, ExerciseScore]:
    """Each row beside softmax and the best baseline; none where softmax was not trained."""
    if REFERENCE not in rows:
        return {}
    higher = exercise["higher_is_better"]
    sign = 1 if higher else -1
    summaries = {
        label: summary(each, higher_is_better=higher, independent=exercise["groups"])
        for label, each in rows.items()
    }
    against = compared(rows, baselines)
    means = {name: sum(each.seeds.values()) / len(each.seeds) for name, each in baselines.items()}
    best = max(means, key=lambda name: sign * means[name], default=None)
    above = 0.0
    if best is not None:
        difference = against[REFERENCE].get(best)
        if difference and difference.significant:
            above = sign * (summaries[REFERENCE].mean - means[best])

    def share(label: str) -> float | None:
        return sign * (summaries[label].mean - means[best]) / above if best and above > 0 else None

    return {
        label: ExerciseScore(
            exercise=exercise["label"],
            metric=exercise["metric_label"],
            score=each,
            reference=summaries[REFERENCE],
            share=share(label),
            apart=bool((other := against[label].get(REFERENCE)) and other.significant),
        )
        for label, each in summaries.items()
    }
