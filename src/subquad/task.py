"""What a task is: data in three splits, with the fields of their inputs and an objective.

A model is `embedding(fields) -> Encoder -> readout`, and the trainer knows no task. A package adds a task
with an entry point in the group "subquad.tasks"; `subquad check NAME` certifies it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Real
from torch import Tensor

from subquad.fields import Batch, Fields, Inputs, Pair, Split
from subquad.objectives import Judged, Kinds, Objective, Supervised


@dataclass(frozen=True, kw_only=True)
class TaskTraits:
    """What a task says of itself.

    `name`: what users type for it.
    `description`: one line.
    `targets`: what can be predicted, the default first; none where the data say it.
    `unit`: what a token is: "event", "symbol", "byte", "pixel".
    `length`: tokens of a sequence that are read at most, unless a comparison says otherwise.
    `sizes`: options that go together, by what users type for them: "quick" trains in minutes with every
        mechanism, "small" in hours on a few cores, "full" is as published. None where there is one size only.
    `source`: where the data or their definition come from.
    `revision`: raised when the same options make other data.
    """

    name: str
    description: str
    targets: tuple[str, ...]
    unit: str
    length: int
    source: str
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    revision: int = 1


@dataclass(frozen=True)
class InputEncoding(ABC):
    """How raw inputs become a model's: a frozen dataclass, JSON through and through, saved with a model."""

    @property
    @abstractmethod
    def fields(self) -> Fields:
        """What the inputs hold. Raises `ValueError`, which names the field, where it is inconsistent."""

    @abstractmethod
    def batch(self, inputs: Any, length: int, *, until: Any = None) -> tuple[Any, Inputs, Tensor]:
        """New sequences: what each is called (a Polars series), inputs of at most `length` tokens, and where
        they are valid. `until` is the moment that a question is about, where there is one.
        """


class Baseline(NamedTuple):
    """A trivial predictor whose score stands beside every model's."""

    name: str
    seeded: bool  # whether another seed makes another one


class Dataset(ABC):
    """The data of one target, in three splits.

    `fields`: what `Batch.inputs` hold.
    `target`: what is predicted.
    `objective`: what a model is asked for.
    `fingerprint`: changes when the data, or what is asked of them, change.
    `summary`: what a reader should know of the data, as JSON.
    `encoding`: how new inputs become a model's, of the type `Task.encoding`; None where a
    trained model takes no new ones.
    `windowed`: whether its examples are windows of longer documents, which `streams` reads.
    """

    fields: Fields
    target: str
    objective: Objective
    fingerprint: str
    summary: Mapping[str, Any]
    encoding: InputEncoding | None
    windowed: bool = False

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest sequence, or side of a pair: the length that keeps every one whole."""

    @abstractmethod
    def count(self, split: Split) -> int:
        """Examples of a split."""

    @abstractmethod
    def batches(
        self, split: Split, *, size: int, length: int, seed: int, epoch: int, shuffle: bool
    ) -> Iterator[Batch]:
        """Every example of a split once, `size` at a time, with `length` tokens at most.

        The order depends on `seed` and `epoch` alone. Padding stands last.
        """

    def streams(self, split: Split, *, size: int, seed: int, epoch: int, shuffle: bool) -> Iterator[Batch]:
        """Every example of a split once, where examples are windows of documents: each row of a batch goes on
        where that of the batch before ended, unless `Batch.begins` says that another document begins there.

        There are `size` rows at most, in all batches as many. A row that has nothing left is padding, and its
        `Batch.example` -1. Shuffled, a stream may begin within a document. Order and padding are as those of
        `batches`. Raises `ValueError` where examples are whole.
        """
        raise ValueError("its sequences are whole, and there is no document along which to carry a state")

    @abstractmethod
    def baselines(self) -> tuple[Baseline, ...]:
        """Those that `baseline` knows."""

    @abstractmethod
    def baseline(self, name: str, *, length: int, seed: int) -> np.ndarray:
        """What a baseline says of the test split, in the form that `judged` takes."""

    @abstractmethod
    def judged(self, output: np.ndarray) -> Judged:
        """The score of what a baseline says."""

    def group(self, split: Split) -> Int[np.ndarray, " n"]:
        """The group that each example belongs to; examples of different groups are independent."""
        return np.arange(self.count(split))

    def kinds(self, split: Split) -> Mapping[str, Kinds]:
        """In what answers of a split differ, such as "length": a score is given for each kind, too."""
        return {}

    def oracle(self, batch: Batch) -> Tensor | None:
        """The outputs of a perfect model, worked out from the inputs alone; None where nobody knows them."""
        return None

    def synthetic(self, *, size: int, length: int) -> Batch:
        """A batch of random inputs without padding, for measurements."""
        generator = torch.Generator().manual_seed(0)
        shape = (size, 2, length) if isinstance(self.fields, Pair) else (size, length)
        return Batch(
            inputs=self.fields.sample(size=size, length=length, generator=generator),
            valid=torch.ones(shape, dtype=torch.bool),
            target=self.objective.synthetic(size=size, length=length),
            example=torch.arange(size),
        )


class SupervisedData(Dataset):
    """Data whose answers are known. A baseline says what `Supervised.choose` takes, of each test example."""

    objective: Supervised  # pyright: ignore[reportIncompatibleVariableOverride]

    @abstractmethod
    def truth(self, split: Split) -> Real[np.ndarray, "n ..."]:
        """The answers of each example: classes, or quantities in their own units."""

    def count(self, split: Split) -> int:
        return len(self.truth(split))

    def judged(self, output: np.ndarray) -> Judged:
        truth, chosen = self.truth("test"), self.objective.choose(output)
        value, parts = self.objective.judge(truth, chosen)
        breakdown = self.objective.breakdown(truth, chosen, self.kinds("test"))
        return Judged({self.objective.metric: value}, parts, breakdown=breakdown)


class Task(ABC):
    """Where a dataset comes from. Options are keyword arguments of the constructor, with defaults.

    `traits`: the class's; a task whose options decide its targets, unit or length has traits of its own.
    `encoding`: the type of `Dataset.encoding`, or the union of them, if its trained models take new inputs.
    """

    traits: TaskTraits
    encoding: ClassVar[type[InputEncoding] | UnionType | None] = None

    @abstractmethod
    def load(self, *, target: str | None, length: int | None) -> Dataset:
        """The data for one of `traits.targets` (None: the first).

        `length` is how many tokens of a sequence will be read; more need not be kept in memory. None: all.
        Raises `ValueError` where the data cannot be had or used as they are.
        """


def baseline_result(data: Dataset, output: np.ndarray) -> dict[str, Any]:
    """Of a record: what a baseline reaches on test."""
    return test_result(data, data.judged(output))


def test_result(data: Dataset, judged: Judged) -> dict[str, Any]:
    """Of a record: the scores on test, of examples and parts too."""
    return {
        "test": judged.scores,
        "examples": example_scores(data, judged.contributions),
        "breakdown": {
            title: {name: part._asdict() for name, part in parts.items()}
            for title, parts in judged.breakdown.items()
        },
    }


def example_scores(data: Dataset, contributions: np.ndarray) -> dict[str, list[float] | list[int]]:
    """Of a record: what each test example adds to a metric, to seven digits, and the group it belongs to."""
    return {
        "contribution": [float(f"{part:.7g}") for part in contributions],
        "group": data.group("test").tolist(),
    }
