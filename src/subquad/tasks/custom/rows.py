"""Tables with an example in each row, its answer beside it: which rows stand in which split.

An entity's rows stand in one split, decided by its name. Where no entities are named, an example's content
takes their place, so that the same example is never in two splits. With entities it might be: it is then
left out of training, or of validation if it stands in test, and counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int, Real

from subquad.fields import SPLITS, Split
from subquad.objectives import Supervised
from subquad.tasks.columns import reading_of_name
from subquad.tasks.custom.answers import ANSWER, MISSING, Asked, encode_targets
from subquad.tasks.custom.schema import Examples, Target
from subquad.tasks.encoding import ENTITY
from subquad.tasks.source import Reading, Source, readable
from subquad.tasks.splits import split_of


class SplitRows(NamedTuple):
    """Which rows stand in which split."""

    places: Mapping[Split, list[int]]
    group: Mapping[Split, Int[np.ndarray, " n"]]  # of each: rows of one entity or content are of one group
    left_out: int  # of training or validation, since a later split has the same content
    repeated: int  # rows whose content stands in another row of the split


def read_rows(source: Source, inputs: Sequence[Reading], table: Examples, *answers: Reading) -> pl.DataFrame:
    """The columns of a table as they are read. Raises `DataError` where one cannot be."""
    source.refuse_empty()
    readings = [*inputs, *answers]
    if table.entity:
        readings.append(reading_of_name(source, table.entity, name=ENTITY, complaint=MISSING))
    rows = source.checked(readings)
    with readable(source.name):
        return rows.collect()


def chosen(owners: Sequence[str | bytes], contents: Sequence[bytes]) -> SplitRows:
    """The rows of each split.

    `owners`: the entity of each row, or the content that takes its place: decides its split.
    `contents`: what a model reads of each row.
    """
    split = [split_of(owner) for owner in owners]
    places: dict[Split, list[int]] = {name: [] for name in SPLITS}
    taken: dict[bytes, Split] = {}
    for name in reversed(SPLITS):  # what a later split has is no more for those before it
        for place, content in enumerate(contents):
            if split[place] == name and taken.setdefault(content, name) == name:
                places[name].append(place)
    kept = sum(map(len, places.values()))
    return SplitRows(
        places={name: places[name] for name in SPLITS},
        group={name: _numbered([owners[place] for place in places[name]]) for name in SPLITS},
        left_out=len(contents) - kept,
        repeated=kept - len(taken),
    )


def _numbered(owners: Sequence[str | bytes]) -> Int[np.ndarray, " n"]:
    numbers: dict[str | bytes, int] = {}
    return np.array([numbers.setdefault(owner, len(numbers)) for owner in owners], np.int64)


def answered(
    rows: pl.DataFrame, choice: SplitRows, target: Target, *, place: str, asked: Asked
) -> tuple[Supervised, dict[Split, Real[np.ndarray, " n"]]]:
    """What is asked, and the answers of each split's rows. Raises `DataError` as `encode_targets` does."""
    answers: dict[Split, pl.Series] = {split: rows[ANSWER][choice.places[split]] for split in SPLITS}
    return encode_targets(target, answers, place=place, asked=asked)


def about(
    table: Examples, name: str, objective: Supervised, choice: SplitRows, *, cut: int, asked: Asked
) -> dict[str, Any]:
    """What a reader should know of them, beside their splits."""
    return {
        "task": "custom",
        "question": f"{name} of each {asked.one}",
        "target": name,
        "kind": objective.kind,
        "metric": objective.metric,
        "file": table.path.name,
        "inputs": list(table.inputs),
        "cut": cut,
        "splits by": table.entity or "content",
        "rows left out, the same in a later split": choice.left_out,
        "rows that begin as another": choice.repeated,
    }


def cut_of(table: Examples, length: int | None) -> int:
    """Tokens of an example that are kept, where a model reads `length`."""
    return table.cut if length is None else min(table.cut, length)
