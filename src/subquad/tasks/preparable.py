"""Tasks whose examples take long to make: they are made in parts, and may be kept between processes.

`subquad.tasks.prepared` keeps what `parts` gives, and hands it to `dataset` the next time.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from subquad.fields import SPLITS, Split
from subquad.task import Task
from subquad.tasks.sequences import SequenceData, Sequences


class DataPart(NamedTuple):
    """Some of what a task makes.

    `arrays`: numbers and truth values, by name; each has those of all parts one behind the other.
    `facts`: JSON. Of a part before the last, all that the next one depends on beside the parts before it;
        of the last, what the dataset needs beside the arrays.
    `done`: the share of the whole that is made with it, 1 in the last.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    done: float


class Preparable(Task):
    """The base of tasks that are made in parts."""

    @abstractmethod
    def parts(self, before: Iterable[DataPart] = ()) -> Iterator[DataPart]:
        """All parts, or those behind `before`, which an earlier process made. How often it was
        interrupted changes no byte.

        Raises `DataError` where the data cannot be had.
        """

    @abstractmethod
    def dataset(self, made: DataPart, *, target: str | None, length: int | None) -> SequenceData:
        """The dataset of all parts, joined. Cheap. `target` and `length` are those of `load`."""

    def read_content(self) -> str:
        """Stands for the content of all files that are read: other data, another text. None are read: ""."""
        return ""

    def load(self, *, target: str | None = None, length: int | None = None) -> SequenceData:
        return self.dataset(concatenated(self.parts()), target=target, length=length)


def concatenated(parts: Iterable[DataPart]) -> DataPart:
    """All parts as one."""
    every = list(parts)
    arrays = {name: np.concatenate([part.arrays[name] for part in every]) for name in every[0].arrays}
    return every[-1]._replace(arrays=arrays)


def in_one_part(splits: Mapping[Split, Sequences], facts: Mapping[str, Any]) -> DataPart:
    """Sequences that are made at once; see `splits_of`."""
    arrays = {
        f"{split}.{each.name}": values
        for split, part in splits.items()
        for each in fields(part)
        if (values := getattr(part, each.name)) is not None
    }
    return DataPart(arrays, facts, done=1.0)


def splits_of(made: DataPart) -> dict[Split, Sequences]:
    """The splits of which `in_one_part` made a part."""
    splits: dict[Split, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    for name, values in made.arrays.items():
        split, _, column = name.partition(".")
        splits[split][column] = values  # pyright: ignore[reportArgumentType]
    return {split: Sequences(**columns) for split, columns in splits.items()}
