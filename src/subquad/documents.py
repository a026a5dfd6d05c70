"""JSON documents that are what their types say, or one line that says where they are not.

Whatever lies in a folder may have been cut, edited or written by another version. What reads it knows the
type of what it reads, and refuses all else before it is used.
"""

import errno
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from subquad.files import read_whole, write_whole

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

MAX_LEVELS = 32  # of objects within objects
SHOWN_CHARACTERS = 40  # characters of a value that is not what it should be
NOT_A_FILE = (errno.EISDIR, errno.EINVAL, errno.ELOOP)


class Damaged(ValueError):
    """A file does not hold what it should; the message names the file, and where it can the field."""


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(document, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `Damaged` where it holds none, `OSError` where it cannot be read."""
    try:
        text = read_whole(path).decode()
    except OSError as error:
        if error.errno in NOT_A_FILE:
            raise Damaged(f"{str(path)!r} is damaged: {error.strerror}") from None
        raise
    except UnicodeDecodeError as error:
        raise Damaged(f"{str(path)!r} is damaged: it is not a JSON file ({error})") from None
    try:
        return parsed(text)
    except ValueError as error:
        raise Damaged(f"{str(path)!r} is damaged: {error}") from None


def parsed(text: str) -> dict[str, Any]:
    """A JSON object that can be written as JSON again; `ValueError` for any other text."""
    try:
        document = json.loads(text, parse_int=parse_int)
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()  # nan, 1e999, half a character
    except RecursionError:
        raise ValueError(f"it has more than {MAX_LEVELS} levels") from None
    except ValueError as error:
        raise ValueError(f"it is not a JSON file ({error})") from None
    if not isinstance(document, dict):
        raise ValueError("it holds no JSON object")
    within: list[Any] = [document]
    for _ in range(MAX_LEVELS):
        within = [child for value in within for child in children(value)]
    if within:
        raise ValueError(f"it has more than {MAX_LEVELS} levels")
    return document


def parse_int(text: str) -> int:
    """A whole number that everybody can compute with; `ValueError` for one of more than 64 bits."""
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError("a whole number has more than 64 bits")
    return number


def children(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def validated(kind: type[T], document: object, *, extra: Literal["ignore", "forbid"] = "ignore") -> T:
    """What a JSON document says, as a `kind`: a dataclass, a TypedDict or any other type of pydantic's.

    Nothing is converted that JSON can tell apart: "3" is no number. Raises `ValueError`, which names the
    first field that is not as it should be.
    """
    from pydantic import ValidationError

    try:
        return adapter(kind).validate_json(json.dumps(document), strict=True, extra=extra)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "it"
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if first["type"] == "missing":
            raise ValueError(f"{field}: is missing") from None
        if first["type"] == "value_error" and isinstance(first["input"], dict):
            raise ValueError(f"{field}: {message}") from None
        value = repr(first["input"])
        shown = value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}…"
        raise ValueError(f"{field}: {message}, not {shown}") from None


@cache
def adapter(kind: type[T]) -> "TypeAdapter[T]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
