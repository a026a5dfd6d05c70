"""The rows of the terminal's table, `--json` and the page: scores beside baselines, and what they cost.

A row is a mechanism with its options over all its seeds, or a baseline. Rows come best first, baselines among
them, so that what stands under a baseline does not clear it; what has no score comes last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import median
from typing import Any, Literal

from subquad.records import Record
from subquad.report.groups import group_letters
from subquad.report.question import Entry, Question
from subquad.report.runs import fingerprint, fits_of
from subquad.report.scores import compared, independent, scores
from subquad.report.statistics import MIN_SEEDS, Difference, SeedScores, Summary, summary
from subquad.report.success import Success, chance_of, success

REFERENCE = "softmax"
MARKED_ABOVE = 0.10  # parameters beyond the reference's, as a fraction, from which a row is marked

NEAR_RANGES = 0.5  # of what is drawn: a baseline no farther off is drawn too

Standing = Literal["above", "below", "not told apart"]  # a row beside the best baseline

BASELINES = {"majority": "majority", "boosting": "gradient boosting"}  # what they are called


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that ended without a result."""

    run: str  # "seed 2", "4,096 tokens"
    status: str  # "out of memory", "timeout", "not finite", "failed"
    reason: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Parameters:
    total: int
    attention: int
    grows_with_length: int
    beyond_reference: float | None = None  # fraction of the reference's total; None: there is no reference

    @property
    def marked(self) -> bool:
        """Whether the row has so many more that its score is not the mechanism's merit alone."""
        return self.beyond_reference is not None and self.beyond_reference > MARKED_ABOVE


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a row costs on the machine it ran on: medians over its seeds, of memory the largest."""

    units_per_second: float | None  # in training
    latency_ms: float | None  # of one sequence of `latency_length` units
    latency_low_ms: float | None  # quartiles
    latency_high_ms: float | None
    latency_length: int | None
    training_peak_mb: float | None  # of one training step
    state_mb: float | None  # of one row, the most on test; None: none was carried
    peak_mb: float | None  # of the whole process, libraries included
    machines: tuple[str, ...]  # fingerprints; figures of different machines give no ratio


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """A row's costs as multiples of the reference's, on the same machine."""

    units_per_second: float | None
    latency_ms: float | None
    training_peak_mb: float | None


@dataclass(frozen=True, kw_only=True)
class BoardRow:
    kind: Literal["mechanism", "baseline"]
    label: str  # "performer:features=128", "gradient boosting"
    form: (
        Literal["bidirectional", "causal"] | None
    )  # None: a baseline, or a mechanism that cannot take the task
    options: dict[str, Any] = field(default_factory=dict)  # all of them, defaults too, once a run is done
    planned: int  # runs, one a seed
    finished: int
    refusal: str = ""  # why the mechanism cannot take the task
    failures: tuple[Failure, ...] = ()
    score: Summary | None = None  # of the metric on the test split
    success: Success | None = None  # how many runs are above the majority; None: it is not known
    group: str = ""  # letters; rows that share one cannot be told apart; none: no claim
    against: dict[str, Difference] = field(default_factory=dict)  # its score less another row's, by label
    over_baseline: float | None = None  # how much better than the best baseline; negative: worse
    beside_baseline: Standing | None = None  # None: no baseline to compare with
    cut_short: int = 0  # runs that were at their best in their last step
    epochs: float | None = None  # how often a run saw each training example
    parameters: Parameters | None = None
    costs: Costs | None = None
    ratios: Ratios | None = None  # None: no reference, or not on the same machine

    @property
    def missing(self) -> int:
        """Runs without a record."""
        return self.planned - self.finished - len(self.failures)


def leaderboard(question: Question, records: Sequence[Record]) -> list[BoardRow]:
    """The rows of a comparison from those of its records that exist, best first."""
    metric, higher = question.metric.name, question.metric.higher_is_better
    fits = {entry.label: fits_of(entry, records) for entry in question.entries}
    seed_scores = {label: scores(mine, metric) for label, mine in fits.items()}
    baselines = _baselines(question, [record for record in records if record["kind"] == "baseline"])
    against = compared(
        {label: scored for label, scored in seed_scores.items() if scored.seeds},
        {row.label: scored for row, scored in baselines if scored.seeds},
    )
    rows, chance = [], chance_of(question, records)
    for entry in question.entries:
        label = entry.label
        row = _row(entry, fits[label], seed_scores[label], question)
        succeeded = success(seed_scores[label], chance)
        rows.append(replace(row, against=against.get(label, {}), success=succeeded))
    alone = [row for row, _ in baselines]
    rows = [_beside_baselines(row, alone, higher) for row in _beside_reference(rows)]
    ranked = sorted(
        (row for row in (*alone, *rows) if row.score is not None), key=lambda row: _rank(row, higher)
    )
    groups = _groups(ranked)
    unscored = [row for row in (*rows, *alone) if row.score is None]
    unscored += [
        BoardRow(kind="mechanism", label=label, form=None, planned=0, finished=0, refusal=reason)
        for label, reason in question.refusals.items()
    ]
    return [replace(row, group=groups.get(row.label, "")) for row in ranked] + unscored


def carried(rows: Sequence[BoardRow]) -> bool:
    """Whether any row's state was carried from window to window, so that it has a size."""
    return any(row.costs is not None and row.costs.state_mb is not None for row in rows)


def near_baselines(rows: Sequence[BoardRow]) -> list[BoardRow]:
    """The best baseline, and those others that lie near what is drawn anyway; one far off would squash it."""
    baselines = [row for row in rows if row.kind == "baseline" and row.score]
    drawn = [
        value
        for row in (*rows, *baselines[:1])
        if row.score and row not in baselines[1:]
        for value in row.score.scores
    ]
    if not drawn:
        return []
    low, high = min(drawn), max(drawn)
    reach = NEAR_RANGES * (high - low)
    return baselines[:1] + [
        row for row in baselines[1:] if row.score and low - reach <= row.score.mean <= high + reach
    ]


def extent(score: Summary) -> list[float]:
    """All values that a drawing of the score shows."""
    return [*score.scores, *([score.interval.low, score.interval.high] if score.interval else [])]


def failure(record: Record, run: str) -> Failure:
    return Failure(
        run=run,
        status=record["status"],
        reason=record.get("reason", ""),
        seconds=record.get("seconds", 0.0),
    )


def _row(entry: Entry, records: Sequence[Record], seed_scores: SeedScores, question: Question) -> BoardRow:
    done = [record for record in records if record["status"] == "ok"]
    return BoardRow(
        kind="mechanism",
        label=entry.label,
        form=entry.form,
        options=done[0]["result"].get("options", entry.options) if done else dict(entry.options),
        planned=question.seeds,
        finished=len(done),
        failures=_failures(records),
        score=_summary(seed_scores, question),
        cut_short=sum(_cut_short(record) for record in done),
        epochs=_epochs(done, question),
        parameters=Parameters(**done[0]["result"]["parameters"]) if done else None,
        costs=_costs(done) if done else None,
    )


def _summary(seed_scores: SeedScores, question: Question) -> Summary | None:
    if not seed_scores.seeds:
        return None
    return summary(
        seed_scores,
        higher_is_better=question.metric.higher_is_better,
        independent=independent(question),
    )


def _cut_short(record: Record) -> bool:
    """Whether the best weights are those of the last step, so that more steps may have found better ones."""
    curve = record["result"].get("curve")
    return bool(curve) and record["result"].get("best_step") == curve[-1]["step"]


def _epochs(records: Sequence[Record], question: Question) -> float | None:
    seen = [record["result"]["curve"][-1]["examples"] for record in records if record["result"].get("curve")]
    return question.train_epochs(max(seen)) if seen else None


def _groups(ranked: Sequence[BoardRow]) -> dict[str, str]:
    """Letters for the mechanisms that have seeds enough to say anything of others."""
    able = [
        row for row in ranked if row.kind == "mechanism" and row.score and len(row.score.scores) >= MIN_SEEDS
    ]
    apart = {
        (row.label, other.label)
        for row, other in combinations(able, 2)
        if (difference := row.against.get(other.label))
        and difference.significant
        and difference.seeds >= MIN_SEEDS
    }
    return group_letters([row.label for row in able], apart)


def _baselines(question: Question, records: Sequence[Record]) -> list[tuple[BoardRow, SeedScores]]:
    rows = []
    names: list[str] = [record["spec"]["baseline"] for record in records]
    for name in dict.fromkeys(names):
        mine = [record for record in records if record["spec"]["baseline"] == name]
        seed_scores = scores(mine, question.metric.name)
        row = BoardRow(
            kind="baseline",
            label=BASELINES.get(name, name),
            form=None,
            planned=len(mine),
            finished=len(seed_scores.seeds),
            failures=_failures(mine),
            score=_summary(seed_scores, question),
        )
        rows.append((row, seed_scores))
    return rows


def _failures(records: Sequence[Record]) -> tuple[Failure, ...]:
    return tuple(
        failure(record, f"seed {record['spec']['seed']}") for record in records if record["status"] != "ok"
    )


def _costs(records: Sequence[Record]) -> Costs:
    measured = [record["measured"] for record in records]
    latencies = [run["latency_ms"] for run in measured if run.get("latency_ms")]

    def middle(values: list[float]) -> float | None:
        return median(values) if values else None

    def known(name: str) -> list[float]:
        return [run[name] for run in measured if run.get(name) is not None]

    return Costs(
        units_per_second=middle(known("train_units_per_second")),
        latency_ms=middle([latency["median"] for latency in latencies]),
        latency_low_ms=middle([latency["low"] for latency in latencies]),
        latency_high_ms=middle([latency["high"] for latency in latencies]),
        latency_length=latencies[0]["length"] if latencies else None,
        training_peak_mb=max(known("training_peak_mb"), default=None),
        state_mb=max(known("state_mb"), default=None),
        peak_mb=max(known("peak_mb"), default=None),
        machines=tuple(sorted({str(fingerprint(record)) for record in records})),
    )


def _beside_reference(rows: Sequence[BoardRow]) -> list[BoardRow]:
    """The rows with parameters and costs relative to plain softmax, of the same form where there is one."""
    references = [row for row in rows if row.label == REFERENCE and row.finished]
    if not references:
        return list(rows)
    return [
        _relative(row, next((base for base in references if base.form == row.form), references[0]))
        for row in rows
    ]


def _relative(row: BoardRow, base: BoardRow) -> BoardRow:
    if row.parameters is None or base.parameters is None or row.costs is None or base.costs is None:
        return row
    parameters = replace(row.parameters, beyond_reference=row.parameters.total / base.parameters.total - 1)
    if len({*row.costs.machines, *base.costs.machines}) > 1:
        return replace(row, parameters=parameters)
    return replace(
        row,
        parameters=parameters,
        ratios=Ratios(
            units_per_second=_ratio(row.costs.units_per_second, base.costs.units_per_second),
            latency_ms=_ratio(row.costs.latency_ms, base.costs.latency_ms),
            training_peak_mb=_ratio(row.costs.training_peak_mb, base.costs.training_peak_mb),
        ),
    )


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _beside_baselines(row: BoardRow, baselines: Sequence[BoardRow], higher: bool) -> BoardRow:
    """The row with its distance from the best baseline."""
    known = {baseline.label: baseline.score.mean for baseline in baselines if baseline.score is not None}
    if row.score is None or not known:
        return row
    sign = 1 if higher else -1
    best = max(known, key=lambda label: sign * known[label])
    difference = row.against.get(best)
    standing: Standing = "not told apart"
    if difference and difference.significant:
        standing = "above" if sign * difference.value > 0 else "below"
    over_baseline = sign * (row.score.mean - known[best])
    return replace(row, over_baseline=over_baseline, beside_baseline=standing)


def _rank(row: BoardRow, higher: bool) -> tuple[float, bool]:
    """Best first; a baseline before what only equals it."""
    assert row.score is not None
    return (-row.score.mean if higher else row.score.mean), row.kind == "mechanism"
