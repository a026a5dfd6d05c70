"""Events in one table, answers in another: one for each entity, or for each of its cut-offs.

Files are streamed. Over the events pass the checks, a count of each entity and one of all categories; then
histories are read a share of the entities at a time and encoded, and only that is kept: 4 bytes a
category or number, 8 a time. Entities with events but no answer are left out, and counted in the summary.
Where there are cut-offs, a question is about the events before its own, and what is learnt of the data is
learnt of the events that a training question may see.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
from jaxtyping import Float

from subquad.fields import SPLITS
from subquad.tasks.columns import clock_of
from subquad.tasks.custom.answers import ANSWER, encode_targets
from subquad.tasks.custom.questions import (
    FIRST,
    UNTIL,
    asked_of,
    in_splits,
    read_questions,
    require_events,
)
from subquad.tasks.custom.schema import EventsTable, Schema, TargetTable
from subquad.tasks.encoding import ENTITY, TIME, Encoding, Histories, vocabularies
from subquad.tasks.events import EventData
from subquad.tasks.examples import Examples
from subquad.tasks.fingerprint import fingerprint
from subquad.tasks.source import Source, open_table, readable
from subquad.tasks.summary import described

ROWS_AT_ONCE = 5_000_000  # about a gigabyte while they are sorted
EARLIEST, LATEST = "earliest", "latest"  # of an entity's cut-offs


def load_events(
    schema: Schema, name: str, *, keep: int | None = None, rows_at_once: int = ROWS_AT_ONCE
) -> EventData:
    """The data that a schema describes, for the target of this name.

    `keep` is how many of the last events are kept before a cut-off; None keeps them all. About
    `rows_at_once` events are sorted in memory at a time (more only where one entity has more).

    Raises `DataError`, one message with file, column and first rows, where anything is amiss.
    """
    events, target = schema.table, schema.targets[name]
    assert isinstance(events, EventsTable)
    assert isinstance(target, TargetTable)
    with (
        open_table(events.path, events.columns, encoding=events.encoding, decimal=events.decimal) as source,
        open_table(target.path, target.columns, encoding=target.encoding, decimal=target.decimal) as labels,
    ):
        return _loaded(schema, name, events, target, source, labels, keep, rows_at_once)


def _loaded(
    schema: Schema,
    name: str,
    table: EventsTable,
    target: TargetTable,
    source: Source,
    labels: Source,
    keep: int | None,
    rows_at_once: int,
) -> EventData:
    blank = _without_statistics(source, table, target)
    source.refuse_empty()
    events = source.checked(blank.readings(source))
    with readable(source.name):
        known = events.group_by(ENTITY).agg(pl.len(), pl.col(TIME).min().alias(FIRST))
        counts = known.collect(engine="streaming")
    questions = read_questions(labels, target, blank.clock)
    require_events(labels, target, questions, counts)
    place = f"{target.path}: column {target.column!r}"
    groups = in_splits(target, questions, place=f"{target.path}: column {target.cutoff!r}")
    objective, answers = encode_targets(
        target, {split: groups[split][ANSWER] for split in SPLITS}, place=place, asked=asked_of(target)
    )
    spans = questions.group_by(ENTITY).agg(
        pl.col(UNTIL).min().alias(EARLIEST), pl.col(UNTIL).max().alias(LATEST)
    )
    with readable(source.name):
        learnt = seen(events, groups["train"].group_by(ENTITY).agg(pl.col(UNTIL).max().alias(LATEST)))
        encoding = replace(blank, vocabularies=vocabularies(learnt, len(blank.categorical)))
        counted = counts.join(spans, on=ENTITY).sort(ENTITY)
        histories = Histories.joined(
            [
                keep_last(
                    encoding.histories(seen(events, share).collect(engine="streaming")),
                    keep,
                    before=share[EARLIEST].to_numpy(),
                )
                for share in shares(counted, rows_at_once)
            ]
        )
    parts = {
        split: Examples.before(histories, part[ENTITY], part[UNTIL].to_numpy(), answers[split])
        for split, part in groups.items()
    }
    train = parts["train"]
    encoding = encoding.standardised(histories, train.start, train.stop, train.until)
    ignored = counts.join(questions, on=ENTITY, how="anti")
    moments = {"cut-offs": target.cutoff, "splits by": target.split} if target.cutoff else {}
    return EventData(
        histories=histories,
        **parts,
        encoding=encoding,
        target=name,
        objective=objective,
        fingerprint=fingerprint([table.path, target.path], schema.definition(name)),
        summary={
            "task": "custom",
            "question": f"{target.column} of each {table.entity}",
            **moments,
            "events file": table.path.name,
            "target file": target.path.name,
            **described(histories, encoding, name, objective, parts),
            "entities without an answer, left out": len(ignored),
            "events of these": int(ignored["len"].sum()),
            "events kept of an entity": "all" if keep is None else keep,
        },
    )


def _without_statistics(source: Source, table: EventsTable, target: TargetTable) -> Encoding:
    for column in table.columns:
        source.place(column)  # all the names before any value
    return Encoding(
        entity=table.entity,
        time=table.time,
        categorical=table.categorical,
        numeric=table.numeric,
        clock=clock_of(source, table.time),
        end="cut-off" if target.cutoff else "last event",
        vocabularies=((),) * len(table.categorical),
        decimal=table.decimal,
    )


def seen(events: pl.LazyFrame, spans: pl.DataFrame) -> pl.LazyFrame:
    """The events of some entities before the latest cut-off of each."""
    columns = events.collect_schema().names()
    latest = spans.lazy().select(ENTITY, LATEST)
    return events.join(latest, on=ENTITY).filter(pl.col(TIME) < pl.col(LATEST)).select(columns)


def shares(counts: pl.DataFrame, rows_at_once: int) -> Iterator[pl.DataFrame]:
    """The entities in groups, in order; each has at most so many events before its last entity's."""
    numbered = counts.with_columns(share=(pl.col("len").cum_sum() - 1) // rows_at_once)
    yield from numbered.partition_by("share", maintain_order=True)


def keep_last(histories: Histories, keep: int | None, *, before: Float[np.ndarray, " e"]) -> Histories:
    """Of each entity the last so many events before a moment, and those from it on."""
    if keep is None:
        return histories
    lengths = histories.stop - histories.start
    owner = np.repeat(np.arange(len(lengths)), lengths)
    earlier = np.bincount(owner, histories.time < before[owner], minlength=len(lengths)).astype(np.int64)
    dropped = np.maximum(earlier - keep, 0)
    ahead = np.arange(len(histories.time)) - histories.start[owner]
    stays = ahead >= dropped[owner]
    stop = np.cumsum(lengths - dropped)
    return Histories(
        histories.entities,
        np.concatenate([[0], stop[:-1]]),
        stop,
        histories.time[stays],
        histories.categorical[stays],
        histories.logs[stays],
    )
