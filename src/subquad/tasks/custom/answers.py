"""The target table: one answer for each entity, and whether every split can learn and judge it."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from subquad.objectives import OBJECTIVES, BinaryClassification, Classification, Regression, Supervised
from subquad.tasks.columns import reading_of_name, reading_of_number
from subquad.tasks.custom.schema import TargetTable
from subquad.tasks.encoding import ENTITY
from subquad.tasks.errors import DataError
from subquad.tasks.source import ROW, SHOWN, Source, readable, shown

ANSWER = "answer"  # class as text, or number


def read_targets(source: Source, table: TargetTable) -> pl.DataFrame:
    """Entity and answer, in order of the entities' names.

    An entity may stand in several rows that agree. Raises `DataError` where they do not, or where an
    entity or answer is missing.
    """
    source.refuse_empty()
    missing = "missing; fill in or leave out these rows"
    if OBJECTIVES[table.kind].quantity:
        answer = reading_of_number(source, table.column, name=ANSWER)
    else:
        answer = reading_of_name(source, table.column, name=ANSWER, complaint=missing)
    checked = source.checked([reading_of_name(source, table.entity, name=ENTITY, complaint=missing), answer])
    with readable(source.name):
        spans = checked.group_by(ENTITY).agg(least=pl.col(ANSWER).min(), answer=pl.col(ANSWER).max())
        answers = spans.collect(engine="streaming").sort(ENTITY)
        conflicting = answers.filter(pl.col("least") != pl.col(ANSWER))
        if len(conflicting):
            entity = conflicting[ENTITY][0]
            its = checked.filter(pl.col(ENTITY) == entity).group_by(ANSWER).agg(pl.col(ROW).min())
            rows = its.sort(ROW).select(ROW, ANSWER).head(SHOWN).collect()
            raise DataError(
                f"{source.name}: column {table.column!r}: {len(conflicting):,} of {len(answers):,} entities "
                f"have different values, first: entity {entity!r}, {shown(rows.rows())}; keep one for each"
            )
    return answers.select(ENTITY, ANSWER)


def require_events_for_targets(
    source: Source, table: TargetTable, answers: pl.DataFrame, known: pl.DataFrame
) -> None:
    """Raise `DataError` where an entity has an answer and no events."""
    strangers = answers.join(known, on=ENTITY, how="anti", maintain_order="left")
    if strangers.is_empty():
        return
    entity = reading_of_name(source, table.entity, name=ENTITY, complaint="missing")
    rows = source.checked([entity]).join(strangers.lazy(), on=ENTITY, how="semi").sort(ROW).head(SHOWN)
    raise DataError(
        f"{source.name}: column {table.entity!r}: {len(strangers):,} of {len(answers):,} entities have no "
        f"events, first: {shown(rows.select(ROW, ENTITY).collect().rows())}; the events have entities like "
        f"{known[ENTITY].min()!r}"
    )


def encode_targets(
    table: TargetTable, answers: pl.DataFrame, groups: Mapping[str, Sequence[str]]
) -> tuple[Supervised, dict[str, float]]:
    """The objective, and each entity's answer as a class number or a quantity.

    Of two classes the second is the positive one: the greater number, or the later in the alphabet.
    Raises `DataError` where a split lacks entities or a class, or there is nothing to tell apart.
    """
    place = f"{table.path}: column {table.column!r}"
    for split, entities in groups.items():
        if not entities:
            raise DataError(
                f"{place}: none of the {len(answers):,} entities falls in {split}: give more entities"
            )
    objective = OBJECTIVES[table.kind]
    values = dict(answers.rows())
    distinct = answers[ANSWER].unique().to_list()
    if len(distinct) < 2:
        raise DataError(
            f"{place}: every entity has the value {distinct[0]!r}: there is nothing to tell apart"
        )
    if objective is Regression:
        learnt = np.array([values[entity] for entity in groups["train"]])
        if not learnt.std():
            raise DataError(f"{place}: every training entity has the value {learnt[0]!r}: give more entities")
        centre, scale = float(learnt.mean()), float(learnt.std())
        return Regression(metric=table.metric, centre=centre, scale=scale), values
    classes = _in_order(distinct)
    if objective is BinaryClassification and len(classes) > 2:
        raise DataError(
            f"{place}: {len(classes):,} values ({', '.join(map(repr, classes[:SHOWN]))}, …), and kind "
            "'binary' takes two: say kind = 'multiclass' or 'regression'"
        )
    for split, entities in groups.items():
        for absent in sorted(set(classes) - {values[entity] for entity in entities}):
            count = sum(value == absent for value in values.values())
            raise DataError(
                f"{place}: none of the {count:,} entities with the value {absent!r} falls in {split}: "
                "give more of them, or merge the value with another"
            )
    numbers = {entity: float(classes.index(value)) for entity, value in values.items()}
    kind = BinaryClassification if objective is BinaryClassification else Classification
    return kind(metric=table.metric, classes=tuple(classes)), numbers


def _in_order(classes: Sequence[str]) -> list[str]:
    try:
        return sorted(classes, key=lambda text: (float(text), text))
    except ValueError:
        return sorted(classes)
