"""How raw events become the numbers a model reads, for training and for new histories alike.

Of each event a model sees

- its categories: an id each, the most frequent in the training events first; 0 stands for the rare
  (fewer than 5 training events, or not among the 4,096 most frequent) and the never seen. A missing
  category is a category;
- its numbers: `sign(x) log(1 + |x|)`;
- the time since the entity's previous event, its gap: `log(1 + gap)`, 0 at the entity's first;
- the time to the next event of the history, its wait, and at the last one to the end: `log(1 + wait)`;
- its age at the end of the history: `log(1 + age)`.

Wait and age are how recency reaches the model, which has no other clock. The end of the history is the
cut-off where the task has one. Where it has none, it is the entity's last event: the only moment that is
known of a new history as well, and that no answer can leak into.

Times are days where they are dates, and as given where they are numbers. All but the ids are
standardised by mean and deviation over the training histories.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.fields import Events
from subquad.task import InputEncoding
from subquad.tasks.columns import (
    GREATEST,
    Clock,
    clock_of,
    reading_of_category,
    reading_of_name,
    reading_of_number,
    reading_of_time,
)
from subquad.tasks.errors import DataError
from subquad.tasks.source import ROW, Reading, Source, Table, open_table, readable

RARE = 5  # fewer training events make a category rare
LARGEST = 4096  # categories kept of a column
ENTITY, TIME = "entity", "time"  # columns of a checked frame
_AS_GIVEN = "entity as given"
_PIECE = 4096  # histories standardised over at a time


class EventInputs(NamedTuple):
    """Padded histories: c categories and n numbers an event; padding stands last and is 0."""

    categorical: Int[Tensor, "b t c"]
    numeric: Float[Tensor, "b t n"]


@dataclass(frozen=True)
class Histories:
    """Events of many entities one after the other, each entity's in time; times in days or as given."""

    entities: tuple[str, ...]
    start: Int[np.ndarray, " e"]  # where an entity's events begin and end
    stop: Int[np.ndarray, " e"]
    time: Float[np.ndarray, " n"]
    categorical: Int[np.ndarray, "n c"]
    logs: Float[np.ndarray, "n f"]  # log numbers and log gap, not yet standardised

    @classmethod
    def joined(cls, parts: Sequence["Histories"]) -> "Histories":
        """The same as one."""
        ahead = np.cumsum([0, *(len(part.time) for part in parts)])
        return cls(
            tuple(entity for part in parts for entity in part.entities),
            np.concatenate([part.start + offset for part, offset in zip(parts, ahead, strict=False)]),
            np.concatenate([part.stop + offset for part, offset in zip(parts, ahead, strict=False)]),
            np.concatenate([part.time for part in parts]),
            np.concatenate([part.categorical for part in parts]),
            np.concatenate([part.logs for part in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class Encoding(InputEncoding):
    """Names of columns, ids of categories, mean and deviation of numbers; written with a trained model."""

    entity: str
    time: str
    categorical: tuple[str, ...]
    numeric: tuple[str, ...]
    clock: Clock
    end: Literal["cut-off", "last event"]  # what an event's age counts from
    vocabularies: tuple[tuple[str | None, ...], ...]  # id - 1 -> category, for each categorical column
    mean: tuple[float, ...] = ()  # of `channels`; none before `standardised`
    deviation: tuple[float, ...] = ()
    decimal: str = "."  # the decimal sign of numbers in text

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read."""
        return (self.entity, self.time, *self.categorical, *self.numeric)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ids of each categorical column, 0 included."""
        return tuple(len(vocabulary) + 1 for vocabulary in self.vocabularies)

    @property
    def channels(self) -> tuple[str, ...]:
        """What stands in each place of `EventInputs.numeric`."""
        return (*(f"log {column}" for column in self.numeric), "log gap", "log wait", "log age")

    @property
    def fields(self) -> Events:
        """What a model's inputs hold. Raises `ValueError` where the parts are not of one encoding."""
        if len(self.categorical) != len(self.vocabularies):
            raise ValueError(
                f"vocabularies: are {len(self.vocabularies)}, of {len(self.categorical)} categorical columns"
            )
        for name in ("mean", "deviation"):
            if len(getattr(self, name)) != len(self.channels):
                raise ValueError(f"{name}: are {len(getattr(self, name))}, of {len(self.channels)} channels")
        if min(self.deviation) <= 0:
            raise ValueError("deviation: should be above zero")
        return Events(vocabularies=self.sizes, numeric=len(self.channels))

    def batch(
        self, table: Table, length: int, *, until: datetime | date | float | None = None
    ) -> tuple[pl.Series, EventInputs, Bool[Tensor, "b t"]]:
        """New histories as a model reads them: entities in their order, and their last events.

        `table` is a frame or the path of a CSV or Parquet file. It has the columns that training had, an
        event a row, in any order. Entities come back in the type that they have there. `until` is the
        moment the question is asked at, where training had cut-offs; a datetime without a zone is read as
        UTC.

        Raises `DataError` where a column or value is not as in training, `until` is missing or cannot be,
        or events stand at or after it.
        """
        entities, histories = self.encode(table)
        if (self.end == "cut-off") != (until is not None):
            remedy = "give until=, the moment to predict from" if until is None else "leave until= out"
            raise DataError(f"ages count from the {self.end} in this model: {remedy}")
        if until is None:
            ends = histories.time[histories.stop - 1]
        else:
            end = moment(until, clock=self.clock)
            if late := int((histories.time >= end).sum()):
                raise DataError(f"{late:,} of the events stand at or after until={until}: leave them out")
            ends = np.full(len(entities), end)
        order = entities.arg_sort().to_numpy()
        start, stop = histories.start[order], histories.stop[order]
        return entities[order], *self.inputs(histories, start, stop, ends[order], length=length)

    def encode(self, table: Table) -> tuple[pl.Series, Histories]:
        """A table's entities as they stand there, in order of their names, and their histories.

        Raises `DataError` where the raw events are not as in training.
        """
        with open_table(table, self.columns, decimal=self.decimal) as source:
            source.refuse_empty()
            if self.clock != clock_of(source, self.time):
                raise DataError(
                    f"{source.name}: column {self.time!r} holds {source.type_of(self.time)}; training had "
                    + ("dates" if self.clock == "calendar" else "numbers")
                )
            as_given = Reading(column=self.entity, name=_AS_GIVEN, value=source.column(self.entity))
            events = source.checked([*self.readings(source), as_given])
            with readable(source.name):
                checked = events.collect()
        entities = checked.group_by(ENTITY).agg(pl.col(_AS_GIVEN).first()).sort(ENTITY)
        return entities[_AS_GIVEN].alias(self.entity), self.histories(checked)

    def readings(self, source: Source) -> list[Reading]:
        """How the columns of a source are read into a checked frame."""
        missing = "without an entity; fill in or leave out these rows"
        return [
            reading_of_name(source, self.entity, name=ENTITY, complaint=missing),
            reading_of_time(source, self.time, name=TIME, clock=self.clock),
            *(
                reading_of_category(source, column, name=category(place))
                for place, column in enumerate(self.categorical)
            ),
            *(
                reading_of_number(source, column, name=number(place))
                for place, column in enumerate(self.numeric)
            ),
        ]

    def histories(self, checked: pl.DataFrame) -> Histories:
        """A checked frame as histories, entities in order of their names, equal times in the order given."""
        entities = checked[ENTITY].unique().sort()
        frame = checked.select(
            numbered(ENTITY, entities.to_list()),
            TIME,
            ROW,
            *(numbered(category(place), words) for place, words in enumerate(self.vocabularies)),
            *(number(place) for place in range(len(self.numeric))),
        ).sort(ENTITY, TIME, ROW)  # numbers alone: text is slow and large to sort
        stop = np.cumsum(np.bincount(frame[ENTITY].to_numpy(), minlength=len(entities) + 1)[1:])
        time = frame[TIME].to_numpy()
        gap = np.diff(time, prepend=time[:1])
        gap[stop[:-1]] = 0.0
        logs = np.empty((len(frame), len(self.numeric) + 1), np.float32)
        for place in range(len(self.numeric)):
            logs[:, place] = signed_log(frame[number(place)].to_numpy())
        logs[:, -1] = signed_log(gap)
        ids = frame.select(category(place) for place in range(len(self.categorical)))
        categorical = ids.to_numpy() if ids.width else np.zeros((len(frame), 0), np.int32)
        start = np.concatenate([[0], stop[:-1]])
        return Histories(tuple(entities), start, stop, time, categorical, logs)

    def inputs(
        self,
        histories: Histories,
        start: Int[np.ndarray, " b"],
        stop: Int[np.ndarray, " b"],
        until: Float[np.ndarray, " b"],
        *,
        length: int,
    ) -> tuple[EventInputs, Bool[Tensor, "b t"]]:
        """The last `length` events of each of some histories, standardised and padded; and where they are."""
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length!r}")
        start = np.maximum(start, stop - length)
        place = np.arange(max(int((stop - start).max(initial=0)), 1))
        valid = place < (stop - start)[:, None]
        event = np.where(valid, start[:, None] + place, 0)
        logs = _logs(histories, event, stop[:, None], until[:, None])
        numeric = (logs - self.mean) / self.deviation
        inputs = EventInputs(
            torch.from_numpy(np.where(valid[..., None], histories.categorical[event], 0).astype(np.int64)),
            torch.from_numpy(np.where(valid[..., None], numeric, 0.0).astype(np.float32)),
        )
        return inputs, torch.from_numpy(valid)

    def standardised(
        self,
        histories: Histories,
        start: Int[np.ndarray, " b"],
        stop: Int[np.ndarray, " b"],
        until: Float[np.ndarray, " b"],
    ) -> "Encoding":
        """With the mean and deviation over the events of these histories; a constant's deviation is 1."""
        count = int((stop - start).sum())
        sums = np.zeros((2, len(self.channels)))
        shift = _logs(histories, start[:1], stop[:1], until[:1])  # so a constant deviates by exactly 0
        for piece in range(0, len(start), _PIECE):
            part = slice(piece, piece + _PIECE)
            lengths = stop[part] - start[part]
            event = spread(start[part], stop[part])
            logs = _logs(histories, event, np.repeat(stop[part], lengths), np.repeat(until[part], lengths))
            sums += (logs - shift).sum(0), ((logs - shift) ** 2).sum(0)
        mean, square = sums / count
        deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
        deviation[deviation < 1e-6] = 1.0
        return replace(self, mean=tuple((mean + shift[0]).tolist()), deviation=tuple(deviation.tolist()))


def _logs(
    histories: Histories,
    event: Int[np.ndarray, "*some"],
    stop: Int[np.ndarray, "*other"],
    until: Float[np.ndarray, "*other"],
) -> Float[np.ndarray, "*some n"]:
    """The channels of some events, of histories that stop and end there; not yet standardised."""
    time = histories.time[event]
    following = np.where(event + 1 < stop, histories.time[np.minimum(event + 1, stop - 1)], until)
    clocks = np.stack([following - time, until - time], -1)
    return np.concatenate([histories.logs[event], signed_log(clocks)], -1)


def numbered(column: str, values: Sequence[str | None]) -> pl.Expr:
    """The place of each value among these, from 1; 0 for any other."""
    names = pl.Series(values, dtype=pl.String)
    places = pl.Series(range(1, len(values) + 1), dtype=pl.Int32)
    return pl.col(column).replace_strict(names, places, default=0, return_dtype=pl.Int32)


def spread(start: Int[np.ndarray, " b"], stop: Int[np.ndarray, " b"]) -> Int[np.ndarray, " e"]:
    """The events `start .. stop - 1` of each history, one history after the other."""
    lengths = stop - start
    return np.arange(lengths.sum()) + np.repeat(stop - np.cumsum(lengths), lengths)


def signed_log(values: Float[np.ndarray, "*some"]) -> Float[np.ndarray, "*some"]:
    """`sign(x) log(1 + |x|)`: the size of a number whatever its unit's magnitude, its sign kept."""
    return np.sign(values) * np.log1p(np.abs(values))


def vocabularies(train_events: pl.LazyFrame, columns: int) -> tuple[tuple[str | None, ...], ...]:
    """The categories of each column of a checked frame that are not rare, the most frequent first.

    All columns are counted in one pass: one for each would read every column as often as there are columns.
    """
    if not columns:
        return ()
    names = [category(place) for place in range(columns)]
    words = train_events.select(names).unpivot(variable_name="column", value_name="word")
    counts = words.group_by("column", "word").len().filter(pl.col("len") >= RARE)
    ordered = counts.collect(engine="streaming").sort("len", "word", descending=[True, False])
    known = ordered.partition_by("column", as_dict=True)
    none = ordered.clear()
    return tuple(tuple(known.get((name,), none)["word"].head(LARGEST)) for name in names)


def moment(time: datetime | date | float, *, clock: Clock) -> float:
    """A moment as `Histories.time` counts it. Raises `DataError` where it cannot be one of this clock's."""
    if isinstance(time, date) != (clock == "calendar"):
        kind = "a date or datetime" if clock == "calendar" else "a number"
        raise DataError(f"times are dates or numbers throughout: give {kind}, not {time!r}")
    if isinstance(time, date):
        whole = time if isinstance(time, datetime) else datetime(time.year, time.month, time.day)
        return whole.replace(tzinfo=whole.tzinfo or UTC).timestamp() / 86400
    if not abs(time) <= GREATEST:
        raise DataError(f"times are numbers of ±{GREATEST:g} at most, not {time!r}")
    return float(time)


def category(place: int) -> str:
    """The name of a categorical column in a checked frame."""
    return f"category {place}"


def number(place: int) -> str:
    """The name of a numeric column in a checked frame."""
    return f"number {place}"
