"""Columns read under suspicion: what each holds is checked before anything is made of it.

Each column is converted as its role demands, so that one stray value is named with its row instead of
changing the type of the whole column. Rows count from 1, below the header. Everything is lazy: a check is a
count that streams over the file, and rows are kept only to be shown.
"""

from typing import Literal

import polars as pl

from subquad.tasks.errors import DataError
from subquad.tasks.source import Fault, Reading, Source, readable

Clock = Literal["calendar", "number"]

GREATEST = 1e30  # of numbers: float32 holds their differences, float64 their squares
_EXACT = {"Float16": 2**11, "Float32": 2**24, "Float64": 2**53}  # below it a float tells whole numbers apart

# ISO 8601, a blank for the T
_LOCAL = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_ZONED = ("%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%d %H:%M%z")
_MICROSECONDS_PER_DAY = 86.4e9
# what programs write into a column of numbers where there is none
_NOT_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"
_MISSING = r"(?i)^(na|n/a|<na>|none|null)$"


def reading_of_name(source: Source, column: str, *, name: str, complaint: str) -> Reading:
    """Text that must be there: an entity, a class. Blanks around it do not count."""
    value = _text(source, column).str.strip_chars()
    missing = Fault((value == "").fill_null(True), complaint)
    faults = (missing, *_no_names(source, column, complaint, f"{_NOT_FINITE}|{_MISSING}"))
    return Reading(column=column, name=name, value=value, faults=faults)


def reading_of_text(source: Source, column: str, *, name: str) -> Reading:
    """Text that is there, as it stands. Raises `DataError` where the column's type is another."""
    kind = source.type_of(column)
    if not isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        raise DataError(f"{source.name}: column {column!r} holds {kind}, not text")
    value = source.column(column).cast(pl.String)
    empty = Fault((value.str.strip_chars() == "").fill_null(True), "empty; leave out these rows")
    return Reading(column=column, name=name, value=value, faults=(empty,))


def reading_of_list(source: Source, column: str, *, name: str) -> Reading:
    """A list of names, numbers as text. Raises `DataError` where the column's type is another."""
    kind = source.type_of(column)
    value = source.column(column)
    if isinstance(kind, pl.Array):
        value = value.arr.to_list()
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else None
    if inner is None or not (
        inner.is_integer() or isinstance(inner, pl.String | pl.Categorical | pl.Enum | pl.Boolean)
    ):
        raise DataError(
            f"{source.name}: column {column!r} holds {kind}, and not lists of text or whole numbers, which a "
            "Parquet file may hold"
        )
    value = value.list.eval(pl.element().cast(pl.String))
    gaps = value.list.eval(pl.element().is_null()).list.any().fill_null(False)
    faults = (
        Fault((value.list.len() == 0).fill_null(True), "empty; leave out these rows"),
        Fault(gaps, "with a missing token; fill it in"),
    )
    return Reading(column=column, name=name, value=value, faults=faults)


def reading_of_category(source: Source, column: str, *, name: str) -> Reading:
    """Text; a missing one is a category of its own."""
    complaint = "not finite, where all others are numbers; leave these fields empty"
    faults = _no_names(source, column, complaint, _NOT_FINITE)
    return Reading(column=column, name=name, value=_text(source, column), faults=faults)


def reading_of_number(source: Source, column: str, *, name: str) -> Reading:
    """A finite number. Raises `DataError` where the column's type holds none."""
    value = _number(source, column)
    complaint = f"missing, not a number or beyond ±{GREATEST:g}; mend or leave out these rows"
    return Reading(column=column, name=name, value=value, faults=(Fault(_out_of_range(value), complaint),))


def clock_of(source: Source, column: str) -> Clock:
    """Whether a column of times holds dates or numbers, as its type or its first value says."""
    kind = source.type_of(column)
    if kind.is_temporal():
        return "calendar"
    if kind.is_numeric():
        return "number"
    text = _text(source, column)
    with readable(source.name):
        first = source.raw.filter(text.is_not_null()).head(1).select(_number_in(text, source.decimal))
        value = first.collect().to_series()
    return "calendar" if value.null_count() == len(value) else "number"


def reading_of_time(source: Source, column: str, *, name: str, clock: Clock) -> Reading:
    """Days since 1970 where the clock is the calendar's; numbers as they are.

    Dates are ISO 8601 of the years 1 to 9999: a date, or a date and a time, with or without a zone; a
    column has zones throughout or nowhere. Numbers that are dates without dashes (20170131) are refused:
    their differences are not times.
    """
    kind = source.type_of(column)
    if clock == "number":
        value = _number(source, column)
        if _dates_in_disguise(source, value):
            raise DataError(
                f"{source.name}: column {column!r}: every value is a date written as a number; "
                "write it as 2017-01-31"
            )
        complaint = f"not a time, where the first value is a number (of ±{GREATEST:g} at most)"
        return Reading(
            column=column, name=name, value=value, faults=(Fault(_out_of_range(value), complaint),)
        )
    if kind.is_temporal():
        if not isinstance(kind, pl.Date | pl.Datetime):
            raise DataError(
                f"{source.name}: column {column!r} holds {kind}; give dates, datetimes or numbers"
            )
        form = pl.Datetime("us", getattr(kind, "time_zone", None))
        moment = source.column(column).cast(form, strict=False)
    elif kind.is_numeric():
        raise DataError(f"{source.name}: column {column!r} holds numbers, where dates were learnt from")
    else:
        moment = _moment(source, column)
    possible = moment.dt.year().is_between(1, 9999).fill_null(False)
    complaint = (
        "not a date or datetime in ISO form (2017-01-31, 2017-01-31 18:30:00) of the years 1 to 9999, "
        "with a zone in every row or in none"
    )
    return Reading(
        column=column,
        name=name,
        value=moment.dt.epoch("us") / _MICROSECONDS_PER_DAY,
        faults=(Fault(~possible, complaint),),
    )


def _text(source: Source, column: str) -> pl.Expr:
    kind = source.type_of(column)
    value = source.column(column)
    if kind.is_nested() or kind == pl.Binary:
        raise DataError(f"{source.name}: column {column!r} holds {kind}; give text, dates or numbers")
    if kind.is_float() or kind.is_decimal():  # 7.0 is the 7 of another file
        whole = value.cast(pl.Int64, strict=False)
        return pl.when(value == whole).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
    return value.cast(pl.String)


def _no_names(source: Source, column: str, complaint: str, words: str) -> tuple[Fault, ...]:
    """Values that would make one name of what differs.

    Of floats, those that are not finite, and those so large that whole numbers have been merged. Of text,
    words such as NaN where everything else is a number: a column of floats was written there.
    """
    kind = source.type_of(column)
    if kind.is_float():
        value = source.column(column)
        limit = _EXACT[str(kind)]
        large = value.is_finite() & (value.abs() >= limit)
        merged = f"of {limit:,} or more, where {kind} merges whole numbers; write integers or text"
        return (
            Fault((~value.is_finite()).fill_null(False), complaint),
            Fault(large.fill_null(False), merged),
        )
    if not isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        return ()
    text = _text(source, column).str.strip_chars()
    word = text.str.contains(words).fill_null(False)
    number = ~word & _number_in(text, source.decimal).is_not_null()
    blank = (text == "").fill_null(True)
    return (Fault(word, complaint, provided=(word | number | blank).all() & number.any()),)


def _number(source: Source, column: str) -> pl.Expr:
    kind = source.type_of(column)
    if kind.is_numeric():
        return source.column(column).cast(pl.Float64)
    if kind == pl.String:
        return _number_in(source.column(column), source.decimal)
    raise DataError(f"{source.name}: column {column!r} holds {kind}, not numbers")


def _number_in(text: pl.Expr, decimal: str) -> pl.Expr:
    """Null where it is none."""
    text = text.str.strip_chars()
    if decimal == ",":
        text = pl.when(~text.str.contains(".", literal=True)).then(text.str.replace(",", ".", literal=True))
    return text.cast(pl.Float64, strict=False)


def _out_of_range(value: pl.Expr) -> pl.Expr:
    """Also where it is NaN or missing."""
    return ~(value.abs() <= GREATEST).fill_null(False)


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
