"""A table that is not trusted yet, from a file or a frame; columns and files are named exactly.

Polars reads some names of columns (`*`, `^a.*$`) and of files (`a*.csv`, `a[b].csv`) as patterns. Columns
are therefore numbered as soon as a table is met, and a `Source` looks up which number a name has; files are
scanned here alone.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import polars as pl

from subquad.tasks.dialect import UTF_8, dialect, in_utf8
from subquad.tasks.errors import DataError, suggestion

ROW = "row"  # where a row stood, from 1, below the header
SHOWN = 3  # offending rows named in a message
LONGEST = 80  # characters of a value in a message
_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")


@runtime_checkable
class Arrow(Protocol):
    """A table of any library that hands it over as Arrow does: pandas, pyarrow, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Table = str | PathLike[str] | pl.DataFrame | pl.LazyFrame | Arrow


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a column is read: its value, and where that cannot be."""

    column: str
    name: str  # of the value in the checked frame
    value: pl.Expr
    faults: tuple["Fault", ...] = ()


class Fault(NamedTuple):
    """Values of a column that cannot be read, and what is said of them."""

    where: pl.Expr  # boolean, never null
    complaint: str
    provided: pl.Expr = pl.lit(True)  # of the whole column: whether these values are wrong


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table that is not trusted yet, under the name it has in messages."""

    name: str
    raw: pl.LazyFrame  # its columns are called "0", "1", …; and `ROW`
    header: tuple[str, ...]
    types: tuple[Any, ...]  # pl.DataType, which beartype cannot read
    decimal: str  # the decimal sign of numbers in text
    places: Mapping[str, Sequence[int]]  # of each name without the blanks around it

    @classmethod
    def of(cls, name: str, header: tuple[str, ...], raw: pl.LazyFrame, *, decimal: str) -> "Source":
        """Of rows whose columns are numbered already."""
        schema = raw.collect_schema()
        places: dict[str, list[int]] = {}
        for place, column in enumerate(header):
            places.setdefault(column.strip(), []).append(place)
        types = tuple(schema[str(place)] for place in range(len(header)))
        return cls(name=name, raw=raw, header=header, types=types, decimal=decimal, places=places)

    def place(self, column: str) -> int:
        """Which column has this name. Raises `DataError` where none has, or more than one."""
        alike = self.places.get(column.strip(), ())
        exact = [place for place in alike if self.header[place] == column]
        if not exact:
            raise DataError(f"{self.name}: no column {column!r}; {suggestion(column, self.header)}")
        if len(alike) > 1:
            which = " and ".join(str(place + 1) for place in alike)
            names = ", ".join(dict.fromkeys(repr(self.header[place]) for place in alike))
            raise DataError(f"{self.name}: columns {which} are called {names}: rename all but one")
        return exact[0]

    def column(self, column: str) -> pl.Expr:
        """The values as they stand there."""
        return pl.col(str(self.place(column)))

    def type_of(self, column: str) -> Any:
        return self.types[self.place(column)]

    def refuse_empty(self) -> None:
        """Raise `DataError` where there are no rows."""
        with readable(self.name):
            first = self.raw.select(ROW).head(1).collect()
        if first.is_empty():
            raise DataError(f"{self.name}: empty: there are no rows")

    def checked(self, readings: Sequence[Reading]) -> pl.LazyFrame:
        """The columns as they are read, under their new names, with the row numbers.

        Raises `DataError` that names the first column with values that cannot be read, and its first rows.
        """
        faults = [(reading.column, fault) for reading in readings for fault in reading.faults]
        sums = [fault.where.sum().alias(str(place)) for place, (_, fault) in enumerate(faults)]
        with readable(self.name):
            counts = self.raw.select(sums).collect(engine="streaming").row(0)
            for (column, fault), count in zip(faults, counts, strict=True):
                if count and self.raw.select(fault.provided).collect(engine="streaming").item():
                    values = "value" if count == 1 else "values"
                    raise DataError(
                        f"{self.name}: column {column!r}: {count:,} {values} {fault.complaint}: "
                        f"{self._first(column, fault.where)}"
                    )
        values = [reading.value.alias(reading.name) for reading in readings]
        return self.raw.select(pl.col(ROW).cast(pl.Int64), *values)

    def _first(self, column: str, where: pl.Expr) -> str:
        value = self.column(column)
        if self.type_of(column).is_temporal():
            value = value.to_physical()  # Python has no years beyond 9999
        rows = self.raw.filter(where).select(ROW, value).head(SHOWN).collect().rows()
        if self.decimal == "." and any(_COMMA.fullmatch(str(value)) for _, value in rows):
            return f'{shown(rows)}; of numbers with a decimal comma, write decimal = "," in the schema'
        return shown(rows)


@contextmanager
def open_table(
    table: Table, columns: Collection[str], *, encoding: str = UTF_8, decimal: str = "."
) -> Iterator[Source]:
    """A table of which these columns will be asked: a frame, or the path of a CSV or Parquet file.

    Of a CSV every column is text. Raises `DataError` where the table cannot be read at all.
    """
    with ExitStack() as stack:
        if isinstance(table, str | PathLike):
            path = Path(table)
            name = str(path)
            with readable(name):
                source = Source.of(name, *_file(path, columns, encoding, stack), decimal=decimal)
        else:
            name = "the given frame"
            with readable(name):
                source = Source.of(name, *_numbered(rows_of(table)), decimal=decimal)
                if isinstance(table, pl.LazyFrame):  # once: it need not come out the same the next time
                    places = {str(source.place(column)) for column in columns}
                    rows = source.raw.select(ROW, *places).collect(engine="streaming")
                    source = replace(source, raw=rows.lazy())
        yield source


def scan_parquet(path: Path) -> pl.LazyFrame:
    """The file of exactly this name, with the columns that it holds and no others."""
    return pl.scan_parquet(path.absolute(), glob=False, hive_partitioning=False)


def rows_of(table: object) -> pl.LazyFrame:
    """The rows of a frame of any library. Raises `DataError` where it is none."""
    if isinstance(table, pl.LazyFrame):
        return table
    if isinstance(table, pl.DataFrame):
        return table.lazy()
    kind = f"{type(table).__module__}.{type(table).__qualname__}"
    if not isinstance(table, Arrow):
        raise DataError(
            f"{kind} is not a table: give a Polars or pandas frame, an Arrow table, or the path of a CSV or "
            "Parquet file"
        )
    try:
        return pl.DataFrame(table).lazy()
    except (ImportError, TypeError, ValueError) as error:  # of pyarrow, too, by which pandas hands over
        raise DataError(f"{kind} cannot be read as Arrow: {error}") from error


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Says which table it is that cannot be read."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


def shown(rows: Sequence[tuple[int, object]]) -> str:
    """The first offending rows of a message; of long values the beginning."""
    return ", ".join(f"row {row}: {_cut(repr(value))}" for row, value in rows)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _file(
    path: Path, columns: Collection[str], encoding: str, stack: ExitStack
) -> tuple[tuple[str, ...], pl.LazyFrame]:
    """The names of a file's columns, and its rows under numbers; a copy of it stays open on the stack."""
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    match path.suffix.lower():
        case ".csv":
            text = stack.enter_context(in_utf8(path, encoding))
            csv = dialect(text, columns, name=str(path))
            rows = pl.scan_csv(
                text.absolute(),
                glob=False,
                infer_schema=False,
                separator=csv.separator,
                eol_char=csv.end,
                new_columns=[str(place) for place in range(len(csv.header))],
            ).with_row_index(ROW, offset=1)
            if csv.gaps:
                rows = rows.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))
            return csv.header, rows
        case ".parquet":
            if encoding != UTF_8:
                raise DataError(f"{path}: Parquet knows its encoding: leave encoding = {encoding!r} out")
            return _numbered(scan_parquet(path))
        case other:
            raise DataError(f"{path}: cannot read {other!r}; give a .csv or .parquet file")


def _numbered(table: pl.LazyFrame) -> tuple[tuple[str, ...], pl.LazyFrame]:
    """The names of a table's columns, and its rows under numbers."""
    header = tuple(table.collect_schema())
    numbers = {column: str(place) for place, column in enumerate(header)}
    return header, table.rename(numbers).with_row_index(ROW, offset=1)
