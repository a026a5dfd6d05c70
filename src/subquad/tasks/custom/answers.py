"""Answers in a table: what each is read as, and whether every split can learn and judge them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Real

from subquad.fields import Split
from subquad.objectives import OBJECTIVES, BinaryClassification, Regression, Supervised
from subquad.tasks.columns import reading_of_name, reading_of_number
from subquad.tasks.custom.schema import Target
from subquad.tasks.errors import DataError
from subquad.tasks.source import SHOWN, Reading, Source

ANSWER = "answer"  # class as text, or number
MISSING = "missing; fill in or leave out these rows"


class Asked(NamedTuple):
    """What messages call that which has an answer."""

    one: str
    many: str


def reading_of_answer(source: Source, target: Target) -> Reading:
    if OBJECTIVES[target.kind].quantity:
        return reading_of_number(source, target.column, name=ANSWER)
    return reading_of_name(source, target.column, name=ANSWER, complaint=MISSING)


def encode_targets(
    target: Target, answers: Mapping[Split, pl.Series], *, place: str, asked: Asked
) -> tuple[Supervised, dict[Split, Real[np.ndarray, " n"]]]:
    """The objective, and each answer as a class number or a quantity.

    Of two classes the second is the positive one: the greater number, or the later in the alphabet.
    Raises `DataError` where a split lacks answers or a class, or there is nothing to tell apart.
    """
    every = pl.concat(answers.values())
    for split, part in answers.items():
        if part.is_empty():
            raise DataError(
                f"{place}: none of the {len(every):,} {asked.many} falls in {split}: give more {asked.many}"
            )
    objective = OBJECTIVES[target.kind]
    distinct = every.unique().to_list()
    if len(distinct) < 2:
        raise DataError(
            f"{place}: every {asked.one} has the value {distinct[0]!r}: there is nothing to tell apart"
        )
    if objective is Regression:
        numbers: dict[Split, np.ndarray] = {split: part.to_numpy() for split, part in answers.items()}
        learnt = numbers["train"]
        if not learnt.std():
            raise DataError(
                f"{place}: every training {asked.one} has the value {learnt[0]!r}: give more {asked.many}"
            )
        scale = {"centre": float(learnt.mean()), "scale": float(learnt.std())}
        return Regression(metric=target.metric, **scale), numbers
    classes = _in_order(distinct)
    if objective is BinaryClassification and len(classes) > 2:
        raise DataError(
            f"{place}: {len(classes):,} values ({', '.join(map(repr, classes[:SHOWN]))}, …), and kind "
            "'binary' takes two: say kind = 'multiclass' or 'regression'"
        )
    for split, part in answers.items():
        for absent in sorted(set(classes) - set(part)):
            raise DataError(
                f"{place}: none of the {int((every == absent).sum()):,} {asked.many} with the value "
                f"{absent!r} falls in {split}: give more of them, or merge the value with another"
            )
    number = {name: place for place, name in enumerate(classes)}
    encoded: dict[Split, np.ndarray] = {
        split: part.replace_strict(number, return_dtype=pl.Int64).to_numpy()
        for split, part in answers.items()
    }
    return objective(metric=target.metric, classes=tuple(classes)), encoded  # pyright: ignore[reportCallIssue]


def _in_order(classes: list[str]) -> list[str]:
    try:
        return sorted(classes, key=lambda text: (float(text), text))
    except ValueError:
        return sorted(classes)
