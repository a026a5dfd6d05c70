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

from subquad.fields import SPLITS
from subquad.task import Task, TaskTraits
from subquad.tasks.columns import clock_of
from subquad.tasks.custom import answers
from subquad.tasks.custom.schema import Schema, read_schema
from subquad.tasks.encoding import ENTITY, Encoding, Histories, vocabularies
from subquad.tasks.errors import DataError
from subquad.tasks.events import EventData
from subquad.tasks.examples import Examples
from subquad.tasks.fingerprint import fingerprint
from subquad.tasks.source import Source, open_table, readable
from subquad.tasks.splits import members
from subquad.tasks.summary import described

ROWS_AT_ONCE = 5_000_000  # about a gigabyte while they are sorted


class Custom(Task):
    """The task that a schema file describes; see `subquad.tasks.custom.schema`.

    `schema`: its path.
    """

    traits = TaskTraits(
        name="custom",
        description="your own events and answers, CSV or Parquet, as --data schema.toml describes them",
        targets=(),
        unit="event",
        length=512,
        source="the files that the schema names",
    )
    encoding = Encoding

    def __init__(self, *, schema: str = "") -> None:
        if not schema:
            raise DataError(
                "the task 'custom' needs to know your tables: give a schema file (--data schema.toml)"
            )
        self.schema = Path(schema)

    def load(self, *, target: str | None = None, length: int | None = None) -> EventData:
        if target is not None:
            raise DataError(
                f"target {target!r} cannot be chosen for own data: the schema's [target] names it"
            )
        return load(self.schema, keep=length)


def load(path: Path, *, keep: int | None = None, rows_at_once: int = ROWS_AT_ONCE) -> EventData:
    """The data that a schema file describes.

    `keep` is how many of the last events of each entity are kept; None keeps them all. About
    `rows_at_once` events are sorted in memory at a time (more only where one entity has more).

    Raises `DataError`, one message with file, column and first rows, where anything is amiss.
    """
    config = read_schema(path)
    events, target = config.events, config.target
    with (
        open_table(events.path, events.columns, encoding=events.encoding, decimal=events.decimal) as source,
        open_table(target.path, target.columns, encoding=target.encoding, decimal=target.decimal) as labels,
    ):
        return _loaded(config, source, labels, keep, rows_at_once)


def _loaded(config: Schema, source: Source, labels: Source, keep: int | None, rows_at_once: int) -> EventData:
    blank = _without_statistics(source, config)
    source.refuse_empty()
    events = source.checked(blank.readings(source))
    with readable(source.name):
        counts = events.group_by(ENTITY).len().collect(engine="streaming")
    answered = answers.read_targets(labels, config.target)
    answers.require_events_for_targets(labels, config.target, answered, counts)
    groups = members(answered[ENTITY])
    objective, values = answers.encode_targets(config.target, answered, groups)

    with readable(source.name):
        learnt = of_entities(events, groups["train"])
        encoding = replace(blank, vocabularies=vocabularies(learnt, len(blank.categorical)))
        counted = counts.join(answered, on=ENTITY, how="semi").sort(ENTITY)
        histories = Histories.joined(
            [
                keep_last(encoding.histories(of_entities(events, share).collect(engine="streaming")), keep)
                for share in shares(counted, rows_at_once)
            ]
        )
    parts = {
        split: _examples(histories, groups[split], values, integral=not objective.quantity)
        for split in SPLITS
    }
    train = parts["train"]
    encoding = encoding.standardised(histories, train.start, train.stop, train.until)
    ignored = counts.join(answered, on=ENTITY, how="anti")
    return EventData(
        histories=histories,
        **parts,
        encoding=encoding,
        target=config.target.column,
        objective=objective,
        fingerprint=fingerprint([config.events.path, config.target.path], config.definition),
        summary={
            "task": "custom",
            "question": f"{config.target.column} of each {config.events.entity}",
            "events file": config.events.path.name,
            "target file": config.target.path.name,
            **described(histories, encoding, config.target.column, objective, parts),
            "entities without an answer, left out": len(ignored),
            "events of these": int(ignored["len"].sum()),
            "events kept of an entity": "all" if keep is None else keep,
        },
    )


def _without_statistics(source: Source, config: Schema) -> Encoding:
    columns = config.events
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


def of_entities(events: pl.LazyFrame, entities: Sequence[str] | pl.Series) -> pl.LazyFrame:
    return events.join(pl.LazyFrame({ENTITY: entities}), on=ENTITY, how="semi")


def shares(counts: pl.DataFrame, rows_at_once: int) -> Iterator[pl.Series]:
    """The entities in groups, in order; each has at most so many events before its last entity's."""
    numbered = counts.with_columns(share=(pl.col("len").cum_sum() - 1) // rows_at_once)
    for share in numbered.partition_by("share", maintain_order=True):
        yield share[ENTITY]


def keep_last(histories: Histories, keep: int | None) -> Histories:
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
