"""Histories of events with a question about each: the data of a run, in padded batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Real

from subquad.fields import SPLITS, Batch, Events, Split
from subquad.objectives import Kinds, Supervised
from subquad.task import Baseline, SupervisedData
from subquad.tasks.batching import batched
from subquad.tasks.boosting import boosting
from subquad.tasks.encoding import Encoding, Histories
from subquad.tasks.examples import Examples
from subquad.tasks.kinds import ranges


@dataclass(frozen=True, kw_only=True)
class EventData(SupervisedData):
    """A task's events, examples in three splits, and how both become numbers."""

    histories: Histories
    train: Examples
    validation: Examples
    test: Examples
    encoding: Encoding  # pyright: ignore[reportIncompatibleVariableOverride]
    target: str
    objective: Supervised
    fingerprint: str
    summary: Mapping[str, Any]

    @property
    def fields(self) -> Events:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.encoding.fields

    @property
    def longest(self) -> int:
        return max(int((part.stop - part.start).max()) for part in (self.train, self.validation, self.test))

    def examples(self, split: Split) -> Examples:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def truth(self, split: Split) -> Real[np.ndarray, " n"]:
        return self.examples(split).target

    def group(self, split: Split) -> Int[np.ndarray, " n"]:
        """The number of each example's entity."""
        return np.unique(self.examples(split).entity, return_inverse=True)[1]

    def batches(
        self, split: Split, *, size: int, length: int, seed: int, epoch: int, shuffle: bool
    ) -> Iterator[Batch]:
        """The last `length` events of each example, in the order of `batched`."""
        examples = self.examples(split)
        lengths = np.minimum(examples.stop - examples.start, length)
        for chosen in batched(lengths, size=size, seed=seed, epoch=epoch, shuffle=shuffle):
            inputs, valid = self.encoding.inputs(
                self.histories,
                examples.start[chosen],
                examples.stop[chosen],
                examples.until[chosen],
                length=length,
            )
            target = self.objective.encode(examples.target[chosen])
            yield Batch(inputs, valid, target, torch.from_numpy(chosen))

    def kinds(self, split: Split) -> Mapping[str, Kinds]:
        """By the events before the question."""
        examples = self.examples(split)
        return {"length of the history": ranges(examples.stop - examples.start)}

    def baselines(self) -> tuple[Baseline, ...]:
        return Baseline("majority", seeded=False), Baseline("boosting", seeded=True)

    def baseline(self, name: str, *, length: int, seed: int) -> np.ndarray:
        if name == "majority":
            return self.objective.constant(self.train.target, count=len(self.test))
        parts: dict[Split, Examples] = {split: self.examples(split) for split in SPLITS}
        sizes = self.encoding.sizes
        return boosting(self.histories, parts, sizes, self.objective, length=length, seed=seed)
