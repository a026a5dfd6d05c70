"""What a run says to the process that started it: a JSON object a line, until the outcome.

A run executes other people's code, which may write anywhere. So each line carries the token that the run was
given, and is held against its type; what is not such a line is refused, and nothing else is lost by it.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad.documents import parsed, validated
from subquad.recorded import Count, Machine, Number, Status

LOOK = 0.2  # seconds between two looks at whether the run has ended
LONGEST = 2**26  # bytes of a line
PIECE = 2**16  # bytes read at a time
SHOWN = 60  # bytes of what is no event


class Start(TypedDict):
    machine: Machine
    versions: dict[str, str]


class Progress(TypedDict):
    phase: str
    step: Count
    steps: Count
    loss: Number | None


class Note(TypedDict):
    text: str


class Outcome(TypedDict):
    """The last event. That it makes a record is for `recorded` to say."""

    status: Status
    reason: str


EVENTS = {"start": Start, "progress": Progress, "note": Note, "outcome": Outcome}


class Garbled(ValueError):
    """What came is no event of this run."""


def written(event: Mapping[str, Any], token: str) -> str:
    """An event, as `heard` reads it. Raises `ValueError` for numbers that are not finite."""
    return json.dumps({"token": token, **event}, allow_nan=False) + "\n"


def heard(pipe: int, token: str, *, ended: Callable[[], bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a run, by name, until its outcome, or until it has ended or closed the pipe without one.

    It has ended when `ended` says so, though another process that it started may hold the pipe open. Half a
    line at the end is none. Raises `Garbled`.
    """
    for line in lines(pipe, ended=ended):
        name, event = understood(line, token)
        yield name, event
        if name == "outcome":
            return


def lines(pipe: int, *, ended: Callable[[], bool]) -> Iterator[bytes]:
    rest = bytearray()
    with DefaultSelector() as selector:
        selector.register(pipe, EVENT_READ)
        while True:
            over = ended()  # before the look: what was written before the end is there
            if not selector.select(0 if over else LOOK):
                if over:
                    return
                continue
            piece = os.read(pipe, PIECE)
            if not piece:
                return
            *whole, last = piece.split(b"\n")
            for line in whole:
                yield bytes(rest + line)
                rest.clear()
            rest += last
            if len(rest) > LONGEST:
                raise Garbled(f"a line of its events has more than {LONGEST:,} bytes")


def understood(line: bytes, token: str) -> tuple[str, dict[str, Any]]:
    """An event and its name. Raises `Garbled`."""
    try:
        event = parsed(line.decode())
    except ValueError:
        event = {}
    if event.pop("token", None) != token:
        raise Garbled(f"something wrote {line[:SHOWN]!r} among its events")
    name = str(event.pop("event", None))
    if name not in EVENTS:
        raise Garbled(f"it sent an event that is none: {name!r}")
    try:
        validated(EVENTS[name], event)
    except ValueError as error:
        raise Garbled(f"it sent an event that is none: {error}") from None
    return name, event
