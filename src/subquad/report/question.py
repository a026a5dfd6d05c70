"""What a comparison asks on a task, as typed data: the report reads comparison.json here and nowhere else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Identity = tuple[str, str, bool]  # mechanism, options and form: what makes runs one row


@dataclass(frozen=True, kw_only=True)
class Metric:
    """By what a comparison judges.

    `name`: what it is called in records.
    `label`: what it is called in a sentence: "AUC".
    `balanced`: whether it weighs classes alike, however rare one is.
    """

    name: str
    label: str
    higher_is_better: bool
    balanced: bool


@dataclass(frozen=True, kw_only=True)
class Split:
    """`entities`: groups of examples that vary together; `classes`: examples of each class."""

    examples: int
    entities: int
    classes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A mechanism that is compared, as it was asked for.

    `label`: what a user types for it: "performer:features=128".
    """

    label: str
    identity: Identity
    options: Mapping[str, Any]
    causal: bool

    @property
    def form(self) -> Literal["causal", "bidirectional"]:
        return "causal" if self.causal else "bidirectional"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is compared, on what, and how.

    `label`: what the task is called among those of a comparison.
    `text`: the task's question in words; "" where it states none.
    `task`: its name, without options.
    `unit`: what a sequence is made of, in the singular: "event", "token", "byte".
    `length`: units of a sequence at most.
    `seeds`: fits of each mechanism.
    `steps`: of the optimiser, each of `step_examples`.
    `entries`: the mechanisms that can take the task.
    `refusals`: why the others cannot, by label.
    """

    label: str
    title: str
    task: str
    target: str
    text: str
    unit: str
    metric: Metric
    length: int
    seeds: int
    steps: int
    step_examples: int
    splits: Mapping[str, Split]
    entries: tuple[Entry, ...]
    refusals: Mapping[str, str]

    @property
    def units(self) -> str:
        return f"{self.unit}s"

    def train_epochs(self, examples: int) -> float | None:
        """How often so many examples are the whole train split; None where its size is not known."""
        train = self.splits.get("train")
        return examples / train.examples if train and train.examples else None


def identity(mechanism: Mapping[str, Any]) -> Identity:
    """Of a mechanism as a run's spec or a row of comparison.json has it."""
    return (
        mechanism["attention"],
        json.dumps(mechanism["options"], sort_keys=True),
        mechanism["causal"],
    )


def settings_of(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tasks of a `recorded.Comparison`, each with all that it shares with the others."""
    return [
        {**comparison, **task, "keys": {**comparison["keys"], **task["keys"]}} for task in comparison["tasks"]
    ]


def question_of(comparison: Mapping[str, Any]) -> Question:
    """What is asked on one task, which is one of `settings_of`."""
    summary = comparison.get("summary", {})
    data, training = comparison["data"], comparison["training"]
    return Question(
        label=comparison["label"],
        title=comparison["title"],
        task=data["task"],
        target=data["target"],
        text=summary.get("question", ""),
        unit=comparison.get("unit", "event"),
        metric=Metric(
            name=comparison["metric"],
            label=comparison.get("metric_label", comparison["metric"]),
            higher_is_better=comparison["higher_is_better"],
            balanced=comparison.get("balanced", False),
        ),
        length=data["length"],
        seeds=comparison["seeds"],
        steps=training["steps"],
        step_examples=training["batch"] * training["accumulate"],
        splits={name: _split(split) for name, split in summary.get("splits", {}).items()},
        entries=entries_of(comparison["rows"]),
        refusals={refusal["label"]: refusal["reason"] for refusal in comparison["refusals"]},
    )


def entries_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Entry, ...]:
    """The rows of a comparison's or a benchmark's document, which are each a `recorded.MechanismRow`."""
    return tuple(
        Entry(label=row["label"], identity=identity(row), options=row["options"], causal=row["causal"])
        for row in rows
    )


def benched_entries(rows: Sequence[Mapping[str, Any]]) -> tuple[Entry, ...]:
    """Those of the bench: a mechanism that is there in both forms is told apart by the causal one's label."""
    entries = entries_of(rows)
    both = {entry.label for entry in entries if not entry.causal}
    return tuple(
        replace(entry, label=f"{entry.label} (causal)") if entry.causal and entry.label in both else entry
        for entry in entries
    )


def _split(split: Mapping[str, Any]) -> Split:
    return Split(
        examples=split["examples"],
        entities=split.get("entities", split["examples"]),
        classes=split.get("classes", {}),
    )
