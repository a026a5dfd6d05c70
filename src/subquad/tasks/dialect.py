"""CSV as it comes: its encoding, line ends and separator, and whether its rows are whole.

A byte-order mark says the encoding; without one it is UTF-8 or what the schema says, since encodings of a
byte a character cannot be told apart. Lines end as the first does. The separator is the one with which the
first line names the columns that are asked for. Then every row is looked at, a block at a time: Polars
would fill up a short one with nulls, without a word.
"""

import codecs
import csv
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Int

from subquad.tasks.errors import DataError

UTF_8 = "utf-8"
SEPARATORS = (",", ";", "\t", "|")
_MARKS = (  # UTF-16's is the beginning of UTF-32's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BLOCK = 1 << 22  # bytes looked at together
_LONGEST = 1 << 26  # bytes of a row; more are a quotation mark left open
_SHOWN = 3


@dataclass(frozen=True)
class Dialect:
    """How a file of UTF-8 is read."""

    header: tuple[str, ...]
    separator: str
    end: str  # of a line; "\n" stands for "\r\n" too
    gaps: bool  # whether there are rows with nothing in any field


@contextmanager
def in_utf8(path: Path, encoding: str) -> Iterator[Path]:
    """The file, or a copy of it in UTF-8 that stays for as long as the context.

    Raises `DataError` where there is no such encoding, or the file is not in it.
    """
    with path.open("rb") as file:
        start = file.read(4)
    marked = next((known for mark, known in _MARKS if start.startswith(mark)), "")
    if marked and encoding != UTF_8 and not encoding.lower().startswith(marked):
        raise DataError(f"{path}: begins with the mark of {marked}: leave encoding = {encoding!r} out")
    if (marked or encoding.lower()) in (UTF_8, "utf8"):
        yield path
        return
    with TemporaryDirectory(prefix="subquad-") as folder:
        copy = Path(folder) / "copy.csv"
        try:
            with (
                path.open(encoding=marked or encoding, newline="") as file,
                copy.open("w", encoding=UTF_8, newline="") as written,
            ):
                copyfileobj(file, written, _BLOCK)
        except LookupError:
            raise DataError(
                f"{path}: unknown encoding {encoding!r}; there are 'cp1252', 'latin-1', 'utf-16-le' and more"
            ) from None
        except UnicodeError as error:
            raise DataError(f"{path}: not {marked or encoding}: {error}") from None
        yield copy


def dialect(path: Path, columns: Collection[str], *, name: str) -> Dialect:
    """How a file of UTF-8 with these columns is read, once all its rows are seen to be whole.

    Raises `DataError` under `name` where it is not UTF-8, is empty, could be read in two ways, or a row
    has more or fewer fields than the first line.
    """
    with path.open("rb") as file:
        head = file.read(_BLOCK)
    if (zero := head.find(b"\0")) >= 0:
        line = 1 + head.count(b"\n", 0, zero)
        raise DataError(
            f"{name}: line {line} holds a zero byte: take it out, or, if this is UTF-16 without a byte-order "
            'mark, write encoding = "utf-16-le" in the schema'
        )
    beginning = len(head) - len(head.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n"))
    text = head[beginning:].decode(errors="replace")  # the rows are looked at below
    if not text:
        raise DataError(f"{name}: empty: there are no rows")
    unquoted = re.sub('"[^"]*"', "", text)
    end = "\r" if "\r" in unquoted and "\n" not in unquoted else "\n"
    if end == "\n" and re.search("\r(?!\n)", unquoted[: unquoted.find("\n") + 1]):
        raise DataError(f"{name}: lines end in different ways, the first in a lone '\\r': end all alike")
    headers = {separator: _header(text, separator, name) for separator in SEPARATORS}
    separator = _separator(headers, columns, name)
    header = headers[separator]
    gaps, first = False, 0
    for data, stops, fields in _rows(path, beginning, separator, end, name):
        lengths = np.diff(stops, prepend=-1) - 1
        lengths -= (lengths > 0) & (np.frombuffer(data, np.uint8)[stops - 1] == ord("\r"))
        torn = np.flatnonzero((fields != len(header)) & (lengths > 0))
        if len(torn):
            shown = ", ".join(f"row {first + row} has {fields[row]}" for row in torn[:_SHOWN])
            raise DataError(
                f"{name}: the header has {len(header)} fields, and {shown}; mend these rows, or quote the "
                "fields that hold a separator, a line end or a quotation mark"
            )
        gaps |= bool((lengths == fields - 1).any())
        first += len(stops)
    return Dialect(header, separator, end, gaps)


def _header(text: str, separator: str, name: str) -> tuple[str, ...]:
    try:
        return tuple(next(csv.reader(StringIO(text, newline=""), delimiter=separator)))
    except csv.Error as error:
        raise DataError(f"{name}: the first line cannot be read: {error}") from None


def _separator(headers: Mapping[str, tuple[str, ...]], columns: Collection[str], name: str) -> str:
    fitting = [separator for separator, header in headers.items() if set(columns) <= set(header)]
    if len({headers[separator] for separator in fitting}) > 1:
        raise DataError(
            f"{name}: the columns may be separated by {' or '.join(map(repr, fitting))}: "
            "take the others out of the first line"
        )
    return max(fitting or SEPARATORS, key=lambda separator: len(headers[separator]))


def _rows(
    path: Path, beginning: int, separator: str, end: str, name: str
) -> Iterator[tuple[bytes, Int[np.ndarray, " r"], Int[np.ndarray, " r"]]]:
    """Blocks of whole rows from the header on: the bytes, where each row ends, and its count of fields."""
    rest, row = b"", 0
    with path.open("rb") as file:
        file.seek(beginning)
        while (block := file.read(_BLOCK)) or rest:
            data = rest + (block or end.encode())  # the last row may have no end
            marks = _unquoted(data, separator, end)
            ends = np.flatnonzero(np.frombuffer(data, np.uint8)[marks] == ord(end))
            if len(ends):
                stops = marks[ends]
                rest, data = data[stops[-1] + 1 :], data[: stops[-1] + 1]
                _refuse_other_encodings(data, stops, row, name)
                if b'"' in data:
                    _refuse_stray_quotes(data, stops, row, separator, end, name)
                yield data, stops, np.diff(ends, prepend=-1)
                row += len(ends)
            elif block and len(data) < _LONGEST:
                rest = data
            else:
                raise _stray_quote(name, row)


def _unquoted(data: bytes, separator: str, end: str) -> Int[np.ndarray, " m"]:
    """Where separators and line ends stand outside of quotes."""
    values = np.frombuffer(data, np.uint8)
    marks = (values == ord(separator)) | (values == ord(end))
    if b'"' in data:
        marks &= np.cumsum(values == ord('"'), dtype=np.uint8) % 2 == 0  # wraps round at an even number
    return np.flatnonzero(marks)


def _refuse_stray_quotes(
    data: bytes, stops: Int[np.ndarray, " r"], row: int, separator: str, end: str, name: str
) -> None:
    """Raise `DataError` where marks bound a field at one end alone, or bind lines that are in none."""
    values = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(values == ord('"'))
    opening, closing = quotes[::2], quotes[1::2]
    lines = np.flatnonzero(values == ord(end))
    binds = np.searchsorted(lines, opening) < np.searchsorted(lines, closing)
    before = np.where(opening == 0, ord(end), values[opening - 1])
    begins = np.isin(before, [ord(separator), ord(end)])
    ends = np.isin(values[closing + 1], [ord(mark) for mark in (separator, end, "\r", '"')])
    stray = np.where(begins, ~ends, binds & ~(ends & (before == ord('"'))))
    if stray.any():
        raise _stray_quote(name, row + int(np.searchsorted(stops, opening[stray][0])))


def _stray_quote(name: str, row: int) -> DataError:
    return DataError(
        f"{name}: row {row}: a quotation mark is left open or stands inside a field: where it is part of the "
        "text, double it and quote the whole field"
    )


def _refuse_other_encodings(data: bytes, stops: Int[np.ndarray, " r"], row: int, name: str) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        place = row + int(np.searchsorted(stops, error.start))
        raise DataError(
            f"{name}: row {place}: byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8, or "
            'name its encoding in the schema, as encoding = "cp1252" (Windows in Western Europe)'
        ) from None
