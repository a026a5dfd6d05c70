"""Published data sets of inputs with a class each: where they are had, and validation, which they lack.

They are read below the folder that the environment variable SUBQUAD_DATA names, or, where they are not
there, from the Hugging Face hub by the package `datasets`, which keeps what it has downloaded.

What others publish has training and test only. Validation is a tenth of training, those that come first by
a hash of their content: the same ones on every machine, whatever the order of the rows. Test stays whole,
and what a model reads stands in one split only.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int

from subquad.fields import Split
from subquad.tasks.errors import DataError
from subquad.tasks.fingerprint import fingerprint
from subquad.tasks.source import readable, scan_parquet

INSTALL = 'pip install "subquad[published]"'
HELD_OUT = 10  # one in so many training examples is for validation


def data_folder() -> Path | None:
    """What SUBQUAD_DATA names; None where it is not set."""
    folder = os.environ.get("SUBQUAD_DATA")
    return Path(folder) if folder else None


def local_path(file: str) -> Path | None:
    """Where a file lies below SUBQUAD_DATA; None where it does not."""
    folder = data_folder()
    return folder / file if folder and (folder / file).is_file() else None


def why_missing(file: str) -> str:
    """Why there is no `local_path`, as the beginning of a message."""
    folder = data_folder()
    return f"{str(folder)!r} (SUBQUAD_DATA) has no {file}" if folder else "SUBQUAD_DATA is not set"


class Labelled(NamedTuple):
    """Inputs, and the class of each."""

    inputs: list[Any]
    label: Int[np.ndarray, " n"]


class Halves(NamedTuple):
    """A data set as it is published."""

    train: Labelled
    test: Labelled
    local: bool  # from SUBQUAD_DATA


class Choice(NamedTuple):
    """Which examples stand in which split, as places in what is published."""

    places: Mapping[Split, list[int]]
    left_out: Mapping[str, int]  # training examples, by reason


@dataclass(frozen=True)
class Published:
    """A data set, and what its column of inputs is called in the file and on the hub.

    `file`: a Parquet table below SUBQUAD_DATA that also has the columns split ("train" or "test") and label.
    `hub`: its name on the Hugging Face hub, where the class is called label as well.
    """

    task: str
    file: str
    column: str
    hub: str
    hub_column: str
    classes: int

    def read(self) -> Halves:
        """Raises `DataError`, which says how to get it, where the data set is not to be had."""
        if path := local_path(self.file):
            return Halves(self.stored(path, "train"), self.stored(path, "test"), local=True)
        if find_spec("datasets") is None:
            raise DataError(
                f"the task {self.task!r}: {why_missing(self.file)}, and the package datasets, which would "
                f"download {self.hub!r}, is not installed: {INSTALL}, or name a folder with {self.file}"
            )
        return self.downloaded()

    def content(self) -> str:
        """Stands for what `read` gives; on the hub a data set is its name, since it is not changed there."""
        path = local_path(self.file)
        return f"hub: {self.hub}" if path is None else fingerprint([path], "file")

    def stored(self, path: Path, split: str) -> Labelled:
        rows = scan_parquet(path).filter(pl.col("split").cast(pl.String) == split)
        with readable(str(path)):
            table = rows.select("label", self.column).collect()
        if table.is_empty():
            raise DataError(f"{path}: column 'split': no row has {split!r}")
        for column in table:
            if missing := column.null_count():
                raise DataError(
                    f"{path}: column {column.name!r}: missing in {missing:,} rows of {split}; leave them out"
                )
        labels = table["label"].cast(pl.Int64).to_numpy()
        if labels.min() < 0 or labels.max() >= self.classes:
            raise DataError(
                f"{path}: column 'label': should be 0 to {self.classes - 1}, "
                f"not {labels.min()} to {labels.max()}"
            )
        return Labelled(table[self.column].to_list(), labels)

    def downloaded(self) -> Halves:
        import datasets  # pyright: ignore[reportMissingImports]

        try:
            every = datasets.load_dataset(self.hub)
        except OSError as error:  # a lost connection, and a name that the hub has not
            raise DataError(
                f"the task {self.task!r}: {self.hub!r} cannot be downloaded: {str(error).splitlines()[0]}; "
                f"try again, or let SUBQUAD_DATA name a folder with {self.file}"
            ) from error
        train, test = (
            Labelled(list(every[split][self.hub_column]), np.array(every[split]["label"], np.int64))
            for split in ("train", "test")
        )
        return Halves(train, test, local=False)


def chosen(
    train: Sequence[bytes], test: Sequence[bytes], sizes: Mapping[Split, int], *, length: int | None = None
) -> Choice:
    """The examples of each split, as many as `sizes` says at most, first by hash.

    A training example whose first `length` bytes (None: all) stand in test, or in training before, is left
    out. Whether one is for validation does not depend on the sizes. Raises `DataError` where a split would
    be empty.
    """
    tested = {example[:length] for example in test}
    known: set[bytes] = set()
    left_out = {"also in test": 0, "repeated": 0}
    kept = []
    for place in in_order(train):
        mark = train[place][:length]
        if mark in tested:
            left_out["also in test"] += 1
        elif mark in known:
            left_out["repeated"] += 1
        else:
            known.add(mark)
            kept.append(place)
    held_out = len(train) // HELD_OUT
    every = {"train": kept[held_out:], "validation": kept[:held_out], "test": in_order(test)}
    places: dict[Split, list[int]] = {split: every[split][:size] for split, size in sizes.items()}
    for split, part in places.items():
        if not part:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
            raise DataError(f"no example is left for {split}, of {len(train):,} for training ({reasons})")
    return Choice(places, left_out)


def in_order(examples: Sequence[bytes]) -> list[int]:
    """Their places, by a hash of their content."""
    marks = [blake2b(example, digest_size=16, person=b"subquad order").digest() for example in examples]
    return sorted(range(len(examples)), key=marks.__getitem__)


def require_sizes(task: str, sizes: Mapping[Split, int]) -> None:
    """Raise `DataError` where a split should be empty."""
    if min(sizes.values()) < 1:
        raise DataError(f"{task}: train, validation and test must be at least 1, not {tuple(sizes.values())}")
