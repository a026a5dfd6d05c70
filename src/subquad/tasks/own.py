"""Anyone's tables as a task: events in one CSV or Parquet file, an answer for each entity in another.

Files are streamed. Over the events pass the checks, a count of each entity and one of all categories; then
histories are read a share of the entities at a time and encoded, and only that is kept: 4 bytes a
category or number, 8 a time. Entities with events but no answer are left out, and counted in the summary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from subquad.tasks import answers, schema
from subquad.tasks.columns import clock_of
from subquad.tasks.encoding import ENTITY, Encoding, Histories, vocabularies
from subquad.tasks.events import EventData, Examples
from subquad.tasks.fingerprint import fingerprint
from subquad.tasks.schema import Schema
from subquad.tasks.source import Source, opened, readable
from subquad.tasks.splits import SPLITS, members
from subquad.tasks.summary import described

ROWS_AT_ONCE = 5_000_000  # about a gigabyte while they are sorted


def load(path: Path, *, keep: int | None = None, rows_at_once: int = ROWS_AT_ONCE) -> EventData:
    """The task that a schema file describes; see `subquad.tasks.schema`.

    `keep` is how many of the last events of each entity are kept; None keeps them all. About
    `rows_at_once` events are sorted in memory at a time (more only where one entity has more).

    Raises `DataError`, one message with file, column and first rows, where anything is amiss.
    """
    asked = schema.read(path)
    events, target = asked.events, asked.target
    with (
        opened(events.path, events.columns, encoding=events.encoding, decimal=events.decimal) as source,
        opened(target.path, target.columns, encoding=target.encoding, decimal=target.decimal) as told,
    ):
        return _loaded(asked, source, told, keep, rows_at_once)


def _loaded(asked: Schema, source: Source, told: Source, keep: int | None, rows_at_once: int) -> EventData:
    blank = _without_statistics(source, asked)
    source.refuse_empty()
    events = source.checked(blank.readings(source))
    with readable(source.name):
        counts = events.group_by(ENTITY).len().collect(engine="streaming")
    answered = answers.read(told, asked.target)
    answers.refuse_strangers(told, asked.target, answered, counts)
    groups = members(answered[ENTITY])
    target, values = answers.numbered(asked.target, answered, groups)

    with readable(source.name):
        learnt = _of(events, groups["train"])
        encoding = replace(blank, vocabularies=vocabularies(learnt, len(blank.categorical)))
        kept = counts.join(answered, on=ENTITY, how="semi").sort(ENTITY)
        histories = Histories.joined(
            [
                _last(encoding.histories(_of(events, share).collect(engine="streaming")), keep)
                for share in shares(kept, rows_at_once)
            ]
        )
    parts = {
        split: _examples(histories, groups[split], values, integral=bool(target.classes)) for split in SPLITS
    }
    train = parts["train"]
    encoding = encoding.standardised(histories, train.start, train.stop, train.until)
    ignored = counts.join(answered, on=ENTITY, how="anti")
    return EventData(
        histories=histories,
        **parts,
        encoding=encoding,
        target=target,
        fingerprint=fingerprint([asked.events.path, asked.target.path], asked.definition),
        summary={
            "task": "own",
            "question": f"{asked.target.column} of each {asked.events.entity}",
            "events file": asked.events.path.name,
            "target file": asked.target.path.name,
            **described(histories, encoding, target, parts),
            "entities without an answer, left out": len(ignored),
            "events of these": int(ignored["len"].sum()),
            "events kept of an entity": "all" if keep is None else keep,
        },
    )


def _without_statistics(source: Source, asked: Schema) -> Encoding:
    columns = asked.events
    for column in columns.columns:
        source.place(column)  # all the names before any value
    return Encoding(
        entity=columns.entity,
        time=columns.time,
        categorical=columns.categorical,
        numeric=columns.numeric,
        clock=clock_of(source, columns.time),
        end="last event",
        vocabularies=((),) * len(columns.categorical),
        decimal=columns.decimal,
    )


def _of(events: pl.LazyFrame, entities: Sequence[str] | pl.Series) -> pl.LazyFrame:
    return events.join(pl.LazyFrame({ENTITY: entities}), on=ENTITY, how="semi")


def shares(counts: pl.DataFrame, rows_at_once: int) -> Iterator[pl.Series]:
    """The entities in groups, in order; each has at most so many events before its last entity's."""
    numbered = counts.with_columns(share=(pl.col("len").cum_sum() - 1) // rows_at_once)
    for share in numbered.partition_by("share", maintain_order=True):
        yield share[ENTITY]


def _last(histories: Histories, keep: int | None) -> Histories:
    """The last events of each entity alone."""
    if keep is None:
        return histories
    lengths = histories.stop - histories.start
    ahead = np.arange(len(histories.time)) - np.repeat(histories.start, lengths)
    stays = ahead >= np.repeat(lengths - keep, lengths)
    stop = np.cumsum(np.minimum(lengths, keep))
    return Histories(
        histories.entities,
        np.concatenate([[0], stop[:-1]]),
        stop,
        histories.time[stays],
        histories.categorical[stays],
        histories.logs[stays],
    )


def _examples(
    histories: Histories, entities: Sequence[str], values: Mapping[str, float], *, integral: bool
) -> Examples:
    """One example for each entity, asked at its last event."""
    place = {entity: number for number, entity in enumerate(histories.entities)}
    chosen = np.array([place[entity] for entity in entities])
    stop = histories.stop[chosen]
    return Examples(
        chosen,
        histories.start[chosen],
        stop,
        histories.time[stop - 1],
        np.array([values[entity] for entity in entities], np.int64 if integral else np.float64),
    )
