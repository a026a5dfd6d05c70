"""Parts of arrays in a folder: what is written stays, whenever a process is killed, and damage is noticed.

    NAME.bin  the numbers of an array, those of one part behind those of another, little-endian
    parts     a line a part: a checksum, and JSON: types, shapes and checksums of its arrays, and its facts

A part is there once its line is; what a killed process left behind is cut off. A line's checksum goes on from
that of the line before.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad.documents import Damaged, parsed, validated
from subquad.files import read_whole
from subquad.tasks.preparable import DataPart

PART_LINE = re.compile(rb"([0-9a-f]{8}) (.+)")

Natural = Annotated[int, Field(ge=0)]
Type = Annotated[str, Field(pattern=r"^[<|][biuf][1248]$")]  # as NumPy writes it


class Stored(TypedDict):
    """An array of a part."""

    type: Type
    shape: Annotated[list[Natural], Field(min_length=1)]
    checksum: Natural


class Line(TypedDict):
    """A part."""

    arrays: dict[Annotated[str, Field(pattern=r"^\w[\w.]*$")], Stored]
    facts: dict[str, Any]
    done: Annotated[float, Field(gt=0, le=1)]


class PartFolder:
    """See the module. One process at a time may write. Raises `Damaged` for what nobody wrote so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        self.checksum = 0  # of the last line
        self.size = 0  # bytes of the lines
        for text in self.written():
            match = PART_LINE.fullmatch(text)
            if not match or int(match[1], 16) != crc32(match[2], self.checksum):
                raise self.damaged(f"line {len(self.lines) + 1} of parts is not as it was written")
            try:
                self.lines.append(validated(Line, parsed(match[2].decode())))
            except ValueError as error:
                raise self.damaged(f"line {len(self.lines) + 1} of parts: {error}") from None
            self.checksum = int(match[1], 16)
            self.size += len(text) + 1

    @property
    def done(self) -> float:
        """The share of the whole that is there."""
        return self.lines[-1]["done"] if self.lines else 0.0

    def read(self) -> DataPart:
        """All parts as one, held against their checksums. The arrays are mapped into memory, not copied."""
        arrays = self.mapped()
        for _ in self.pieces(arrays):
            pass
        return DataPart(arrays, self.lines[-1]["facts"], self.done)

    def parts(self) -> Iterator[DataPart]:
        """One after the other, held against their checksums."""
        return self.pieces(self.mapped()) if self.lines else iter(())

    def cut(self) -> None:
        """Cut off what is behind the last part: `append` goes on from there."""
        for path in self.path.glob("*.bin"):
            sizes = [stored_bytes(line["arrays"][path.stem]) for line in self.lines]
            if sum(sizes) < path.stat().st_size:
                os.truncate(path, sum(sizes))
        if self.path.exists():
            (self.path / "parts").touch()
            os.truncate(self.path / "parts", self.size)

    def append(self, part: DataPart) -> None:
        """Write a part behind the others."""
        self.path.mkdir(parents=True, exist_ok=True)
        plain = {
            name: np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
            for name, values in part.arrays.items()
        }
        arrays = {
            name: Stored(type=values.dtype.str, shape=[*values.shape], checksum=crc32(values.data))
            for name, values in plain.items()
        }
        if self.lines and kinds(arrays) != kinds(self.lines[0]["arrays"]):
            raise ValueError(f"parts differ: {kinds(self.lines[0]['arrays'])} and {kinds(arrays)}")
        for name, values in plain.items():
            write_behind(self.path / f"{name}.bin", values.data)
        line = Line(arrays=arrays, facts=dict(part.facts), done=part.done)
        text = json.dumps(line, allow_nan=False).encode()
        self.checksum = crc32(text, self.checksum)
        whole = b"%08x %s\n" % (self.checksum, text)
        write_behind(self.path / "parts", whole)
        self.lines.append(line)
        self.size += len(whole)

    def written(self) -> list[bytes]:
        """The lines that were written to their end."""
        try:
            return read_whole(self.path / "parts").split(b"\n")[:-1]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self.damaged(f"parts: {error.strerror}") from None

    def mapped(self) -> dict[str, np.ndarray]:
        arrays = {}
        for name, (kind, *width) in kinds(self.lines[0]["arrays"]).items():
            shape = (sum(line["arrays"][name]["shape"][0] for line in self.lines), *width)
            path = self.path / f"{name}.bin"
            if 0 in shape:  # which cannot be mapped
                arrays[name] = np.empty(shape, kind)
                continue
            try:
                arrays[name] = np.asarray(np.memmap(path, kind, "r", shape=shape))
            except (OSError, ValueError) as error:
                raise self.damaged(f"{path.name}: {error}") from None
        return arrays

    def pieces(self, arrays: dict[str, np.ndarray]) -> Iterator[DataPart]:
        start = dict.fromkeys(arrays, 0)
        for line in self.lines:
            here = {}
            for name, values in arrays.items():
                stop = start[name] + line["arrays"][name]["shape"][0]
                here[name] = values[start[name] : stop]
                if crc32(here[name].data) != line["arrays"][name]["checksum"]:
                    raise self.damaged(f"{name}.bin is not as it was written")
                start[name] = stop
            yield DataPart(here, line["facts"], line["done"])

    def damaged(self, what: str) -> Damaged:
        return Damaged(f"{str(self.path)!r} is damaged: {what}")


def kinds(arrays: Mapping[str, Stored]) -> dict[str, tuple[Any, ...]]:
    """What is the same in all parts: the type of each array, and its shape but for the first axis."""
    return {name: (array["type"], *array["shape"][1:]) for name, array in arrays.items()}


def stored_bytes(array: Stored) -> int:
    return int(np.prod(array["shape"])) * np.dtype(array["type"]).itemsize


def write_behind(path: Path, content: bytes | memoryview) -> None:
    """Write at the end of a file, and wait until it is on the disk."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
