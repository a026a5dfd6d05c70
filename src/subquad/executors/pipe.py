"""The pipe between a run and the process that started it: a JSON object a line, until the outcome.

A run executes other people's code, which may write anywhere. So each line carries the token that the run was
given, and is validated; what is not such a line is refused, and nothing else is lost by it.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from selectors import EVENT_READ, DefaultSelector
from typing import Any, TypedDict

from subquad.documents import parsed, validated
from subquad.executors.events import Note, Outcome, Progress, Start

EXIT_POLL_S = 0.2  # seconds between two looks at whether the run has ended
MAX_LINE_BYTES = 2**26
READ_BYTES = 2**16  # at a time
SHOWN_BYTES = 60  # of a line that is no event

EVENTS = {"start": Start, "progress": Progress, "note": Note, "outcome": Outcome}


class Job(TypedDict):
    """What a run is told, on the one line of its standard input."""

    type: str  # "module:class" of the spec
    spec: dict[str, Any]
    folder: str  # of the store
    path: list[str]  # folders where modules may lie besides the installed ones
    token: str


class ProtocolError(ValueError):
    """A line is no event of this run."""


def encode(event: Mapping[str, Any], token: str) -> str:
    """An event, as `read_events` reads it. Raises `ValueError` for numbers that are not finite."""
    return json.dumps({"token": token, **event}, allow_nan=False) + "\n"


def read_events(pipe: int, token: str, *, ended: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """The events of a run until its outcome, or until it has ended or closed the pipe without one.

    It has ended when `ended` says so, though another process that it started may hold the pipe open. Half a
    line at the end is none. Raises `ProtocolError`.
    """
    for line in read_lines(pipe, ended=ended):
        event = decode(line, token)
        yield event
        if event["event"] == "outcome":
            return


def read_lines(pipe: int, *, ended: Callable[[], bool]) -> Iterator[bytes]:
    rest = bytearray()
    with DefaultSelector() as selector:
        selector.register(pipe, EVENT_READ)
        while True:
            over = ended()  # before the look: what was written before the end is there
            if not selector.select(0 if over else EXIT_POLL_S):
                if over:
                    return
                continue
            piece = os.read(pipe, READ_BYTES)
            if not piece:
                return
            *whole, last = piece.split(b"\n")
            for line in whole:
                yield bytes(rest + line)
                rest.clear()
            rest += last
            if len(rest) > MAX_LINE_BYTES:
                raise ProtocolError(f"a line of its events has more than {MAX_LINE_BYTES:,} bytes")


def decode(line: bytes, token: str) -> dict[str, Any]:
    """An event, validated. Raises `ProtocolError`."""
    try:
        event = parsed(line.decode())
    except ValueError:
        event = {}
    if event.pop("token", None) != token:
        raise ProtocolError(f"something wrote {line[:SHOWN_BYTES]!r} among its events")
    name = str(event.get("event"))
    if name not in EVENTS:
        raise ProtocolError(f"it sent an unknown event {name!r}")
    try:
        validated(EVENTS[name], event)
    except ValueError as error:
        raise ProtocolError(f"it sent an invalid event: {error}") from None
    return event
