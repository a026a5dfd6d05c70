"""The table of what is asked of entities: one answer for each, or for each of its cut-offs."""

import math
from bisect import bisect_left
from collections.abc import Mapping

import polars as pl

from subquad.fields import SPLITS, Split
from subquad.tasks.columns import Clock, reading_of_name, reading_of_time
from subquad.tasks.custom.answers import ANSWER, MISSING, Asked, reading_of_answer
from subquad.tasks.custom.schema import TargetTable
from subquad.tasks.encoding import ENTITY
from subquad.tasks.errors import DataError
from subquad.tasks.source import ROW, SHOWN, Source, readable, shown
from subquad.tasks.splits import BOUNDS, split_of

UNTIL = "until"  # the cut-off; infinite where a question is about all events
FIRST = "first"  # the time of an entity's first event


def asked_of(table: TargetTable) -> Asked:
    return Asked("question", "questions") if table.cutoff else Asked("entity", "entities")


def read_questions(source: Source, table: TargetTable, clock: Clock) -> pl.DataFrame:
    """Entity, cut-off and answer, in order of the entities' names and of time.

    A question may stand in several rows that agree. Raises `DataError` where they do not, or where an
    entity, a cut-off or an answer is missing.
    """
    source.refuse_empty()
    readings = [
        reading_of_name(source, table.entity, name=ENTITY, complaint=MISSING),
        reading_of_answer(source, table),
    ]
    if table.cutoff:
        readings.append(reading_of_time(source, table.cutoff, name=UNTIL, clock=clock))
    checked = source.checked(readings)
    if not table.cutoff:
        checked = checked.with_columns(pl.lit(math.inf).alias(UNTIL))
    asked, by = asked_of(table), [ENTITY, UNTIL]
    with readable(source.name):
        spans = checked.group_by(by).agg(least=pl.col(ANSWER).min(), answer=pl.col(ANSWER).max())
        questions = spans.collect(engine="streaming").sort(by)
        conflicting = questions.filter(pl.col("least") != pl.col(ANSWER))
        if len(conflicting):
            entity, until = conflicting.select(by).row(0)
            its = checked.filter((pl.col(ENTITY) == entity) & (pl.col(UNTIL) == until))
            rows = its.group_by(ANSWER).agg(pl.col(ROW).min()).sort(ROW).select(ROW, ANSWER)
            raise DataError(
                f"{source.name}: column {table.column!r}: {len(conflicting):,} of {len(questions):,} "
                f"{asked.many} have different values, first: entity {entity!r}, "
                f"{shown(rows.head(SHOWN).collect().rows())}; keep one for each"
            )
    return questions.select(ENTITY, UNTIL, ANSWER)


def require_events(source: Source, table: TargetTable, questions: pl.DataFrame, known: pl.DataFrame) -> None:
    """Raise `DataError` where an entity has answers and no events, or none before a cut-off.

    `known`: of each entity, the time of its first event.
    """
    strangers = questions.join(known, on=ENTITY, how="anti", maintain_order="left").unique(ENTITY)
    entity = reading_of_name(source, table.entity, name=ENTITY, complaint=MISSING)
    if len(strangers):
        rows = source.checked([entity]).join(strangers.lazy(), on=ENTITY, how="semi").sort(ROW).head(SHOWN)
        raise DataError(
            f"{source.name}: column {table.entity!r}: {len(strangers):,} of "
            f"{questions[ENTITY].n_unique():,} entities have no events, first: "
            f"{shown(rows.select(ROW, ENTITY).collect().rows())}; the events have entities like "
            f"{known[ENTITY].min()!r}"
        )
    early = questions.join(known, on=ENTITY).filter(pl.col(UNTIL) <= pl.col(FIRST))
    if len(early):
        raise DataError(
            f"{source.name}: column {table.cutoff!r}: {len(early):,} of {len(questions):,} questions have no "
            f"events before their cut-off, first: entity {early[ENTITY].min()!r}; leave these rows out"
        )


def in_splits(table: TargetTable, questions: pl.DataFrame, *, place: str) -> Mapping[Split, pl.DataFrame]:
    """The questions of each split: by entity, none of which is in two, or by time."""
    if table.split == "time":
        return _by_time(questions, place=place)
    entities = questions[ENTITY].unique()
    names = pl.Series([split_of(entity) for entity in entities], dtype=pl.String)
    split = questions[ENTITY].replace_strict(entities, names, return_dtype=pl.String)
    return {name: questions.filter(split == name) for name in SPLITS}


def _by_time(questions: pl.DataFrame, *, place: str) -> Mapping[Split, pl.DataFrame]:
    """The first 60 % of the questions to train, the next 20 % to validate; those of one moment together.

    Each split has one moment at least.
    """
    moments = questions.group_by(UNTIL).len().sort(UNTIL)
    count = len(moments)
    if count < len(SPLITS):
        raise DataError(
            f"{place}: split = 'time' needs {len(SPLITS)} different cut-offs at least, and there are "
            f"{count}: give more, or say split = 'entity'"
        )
    share = (moments["len"].cum_sum() / len(questions)).to_list()
    first = min(bisect_left(share, BOUNDS[0]) + 1, count - 2)
    second = min(max(bisect_left(share, BOUNDS[1]) + 1, first + 1), count - 1)
    ends = [moments[UNTIL][first], moments[UNTIL][second], math.inf]
    begins = [-math.inf, *ends]
    return {
        split: questions.filter((pl.col(UNTIL) >= begin) & (pl.col(UNTIL) < end))
        for split, begin, end in zip(SPLITS, begins, ends, strict=False)
    }
