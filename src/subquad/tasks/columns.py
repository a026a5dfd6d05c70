"""Columns read under suspicion: what a file holds is checked before anything is made of it.

A CSV is read as text and each column converted as its role demands, so that one stray value is named
with its row instead of changing the type of the whole column. Rows count from 1, below the header.
Everything is lazy: a check is a count that streams over the file, and rows are kept only to be shown.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from subquad.tasks.errors import DataError, suggestion

ROW = "row"  # of a checked frame: where its rows stood
SHOWN = 3  # offending rows named in a message
_NUMBER = "subquad row number"  # of a raw frame; no file is likely to have such a column

Clock = Literal["calendar", "number"]

# ISO 8601, a blank for the T
_LOCAL = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_ZONED = ("%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%d %H:%M%z")
_MICROSECONDS_PER_DAY = 86.4e9


@dataclass(frozen=True)
class Source:
    """A table that is not trusted yet, under the name it has in messages."""

    name: str
    raw: pl.LazyFrame  # with the row numbers

    @classmethod
    def of_file(cls, path: Path) -> "Source":
        """Raises `DataError` where there is no such file, or it is neither CSV nor Parquet."""
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        with readable(str(path)):
            match path.suffix.lower():
                case ".csv":
                    table = pl.scan_csv(path, infer_schema=False)
                case ".parquet":
                    table = pl.scan_parquet(path)
                case other:
                    raise DataError(f"{path}: cannot read {other!r}; give a .csv or .parquet file")
            return cls(str(path), table.with_row_index(_NUMBER, offset=1))

    @classmethod
    def of_frame(cls, frame: pl.DataFrame) -> "Source":
        return cls("the given frame", frame.lazy().with_row_index(_NUMBER, offset=1))

    def types(self, *columns: str):  # -> pl.Schema, which beartype cannot read
        """The types of all columns. Raises `DataError` where one of these is missing."""
        with readable(self.name):
            known = self.raw.drop(_NUMBER).collect_schema()
        for column in columns:
            if column not in known:
                raise DataError(f"{self.name}: no column {column!r}; {suggestion(column, known)}")
        return known

    def refuse_empty(self) -> None:
        """Raise `DataError` where there are no rows."""
        with readable(self.name):
            first = self.raw.select(_NUMBER).head(1).collect()
        if first.is_empty():
            raise DataError(f"{self.name}: empty: there are no rows")

    def checked(self, readings: Sequence["Reading"]) -> pl.LazyFrame:
        """The columns as they are read, under their new names, with the row numbers.

        Raises `DataError` that names the first column with values that cannot be read, and its first rows.
        """
        faults = [reading.fault.sum().alias(str(place)) for place, reading in enumerate(readings)]
        with readable(self.name):
            counts = self.raw.select(faults).collect(engine="streaming").row(0)
            for reading, count in zip(readings, counts, strict=True):
                if count:
                    worst = self.raw.filter(reading.fault).select(_NUMBER, reading.column).head(SHOWN)
                    values = "value" if count == 1 else "values"
                    raise DataError(
                        f"{self.name}: column {reading.column!r}: {count:,} {values} {reading.complaint}: "
                        f"{shown(worst.collect().rows())}"
                    )
        values = [reading.value.alias(reading.name) for reading in readings]
        return self.raw.select(pl.col(_NUMBER).cast(pl.Int64).alias(ROW), *values)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a column is read: its value, and where that cannot be."""

    column: str
    name: str  # of the value in the checked frame
    value: pl.Expr
    fault: pl.Expr  # boolean, never null
    complaint: str


def reading_of_name(source: Source, column: str, *, name: str, complaint: str) -> Reading:
    """Text that must be there: an entity, a class."""
    value = _text(source, column).str.strip_chars()
    return Reading(
        column=column,
        name=name,
        value=value,
        fault=value.is_null() | (value == "").fill_null(True),
        complaint=complaint,
    )


def reading_of_category(source: Source, column: str, *, name: str) -> Reading:
    """Text; a missing one is a category of its own."""
    return Reading(
        column=column, name=name, value=_text(source, column), fault=pl.lit(False), complaint="unreadable"
    )


def reading_of_number(source: Source, column: str, *, name: str) -> Reading:
    """A finite number. Raises `DataError` where the column's type holds none."""
    value = _number(source, column)
    return Reading(
        column=column,
        name=name,
        value=value,
        fault=~value.is_finite().fill_null(False),
        complaint="missing, not a number or infinite; mend or leave out these rows",
    )


def clock_of(source: Source, column: str) -> Clock:
    """Whether a column of times holds dates or numbers, as its type or its first value says."""
    kind = source.types(column)[column]
    if kind.is_temporal():
        return "calendar"
    if kind.is_numeric():
        return "number"
    with readable(source.name):
        first = source.raw.select(_text(source, column)).drop_nulls().head(1).collect()
    return "number" if len(first) and _is_number(first.item()) else "calendar"


def reading_of_time(source: Source, column: str, *, name: str, clock: Clock) -> Reading:
    """Days since 1970 where the clock is the calendar's; numbers as they are.

    Dates are ISO 8601: a date, or a date and a time, with or without a zone; a column has zones
    throughout or nowhere. Numbers that are dates without dashes (20170131) are refused: their
    differences are not times.
    """
    kind = source.types(column)[column]
    if clock == "number":
        value = _number(source, column)
        if _dates_in_disguise(source, value):
            raise DataError(
                f"{source.name}: column {column!r}: every value is a date written as a number; "
                "write it as 2017-01-31"
            )
        return Reading(
            column=column,
            name=name,
            value=value,
            fault=~value.is_finite().fill_null(False),
            complaint="not a time, where the first value is a number",
        )
    if kind.is_temporal():
        if not isinstance(kind, pl.Date | pl.Datetime):
            raise DataError(
                f"{source.name}: column {column!r} holds {kind}; give dates, datetimes or numbers"
            )
        moment = pl.col(column).cast(pl.Datetime("us", getattr(kind, "time_zone", None)))
    elif kind.is_numeric():
        raise DataError(f"{source.name}: column {column!r} holds numbers, where dates were learnt from")
    else:
        moment = _moment(source, column)
    return Reading(
        column=column,
        name=name,
        value=moment.dt.epoch("us") / _MICROSECONDS_PER_DAY,
        fault=moment.is_null(),
        complaint="not a date or datetime in ISO form (2017-01-31, 2017-01-31 18:30:00), "
        "with a zone in every row or in none",
    )


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Says which table it is that Polars cannot read."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from error


def shown(rows: Sequence[tuple[int, object]]) -> str:
    """The first offending rows of a message."""
    return ", ".join(f"row {row}: {value!r}" for row, value in rows)


def _text(source: Source, column: str) -> pl.Expr:
    kind = source.types(column)[column]
    if kind.is_nested() or kind == pl.Binary:
        raise DataError(f"{source.name}: column {column!r} holds {kind}; give text, dates or numbers")
    if kind.is_float():  # 7.0 is the 7 of another file
        whole = pl.col(column).cast(pl.Int64, strict=False)
        return (
            pl.when(pl.col(column) == whole)
            .then(whole.cast(pl.String))
            .otherwise(pl.col(column).cast(pl.String))
        )
    return pl.col(column).cast(pl.String)


def _number(source: Source, column: str) -> pl.Expr:
    kind = source.types(column)[column]
    if kind.is_numeric():
        return pl.col(column).cast(pl.Float64)
    if kind == pl.String:
        return pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    raise DataError(f"{source.name}: column {column!r} holds {kind}, not numbers")


def _moment(source: Source, column: str) -> pl.Expr:
    """Text as a moment, in the zone form of the column's first value."""
    text = _text(source, column).str.strip_chars().str.replace("T", " ", literal=True)
    text = text.str.replace(r"[Zz]$", "+00:00")
    text = pl.when(text.str.contains(r"^\d{4}-\d\d-\d\d")).then(text)  # Polars would take the year 20 AD
    zone = r"[+-]\d\d:?\d\d$"
    with readable(source.name):
        first = source.raw.select(text.str.contains(r":.*" + zone)).drop_nulls().head(1).collect()
    if len(first) and first.item():
        return pl.coalesce(
            text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC") for form in _ZONED
        )
    return pl.coalesce(text.str.to_datetime(form, strict=False, time_unit="us") for form in _LOCAL)


def _dates_in_disguise(source: Source, value: pl.Expr) -> bool:
    digits = value.cast(pl.Int64, strict=False).cast(pl.String)
    dates = digits.str.to_date("%Y%m%d", strict=False).is_between(pl.date(1900, 1, 1), pl.date(2100, 12, 31))
    with readable(source.name):
        return (
            source.raw.select((dates & (value % 1 == 0)).fill_null(False).all())
            .collect(engine="streaming")
            .item()
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
