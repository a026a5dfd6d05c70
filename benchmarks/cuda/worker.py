"""Rows measured one after the other in a process of their own, each told of as soon as it is known.

An executor runs a part and hands on what it tells. A row that takes too long, or leaves the card in an error,
ends the process: the card's errors stay with it, and the rows behind go on in another one.
"""

import gc
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NotRequired

import torch
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from benchmarks.cuda.contenders import one_line
from benchmarks.cuda.plan import Check, Compilation, Race, Row, Scale, from_json, to_json
from subquad.executors import Tell
from subquad.records import Record, Store, key

EXIT = 3  # status of a process that ends itself behind a row


class Message(TypedDict):
    """A row that begins, or with its result one that has ended."""

    row: str
    result: NotRequired[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of one process.

    deadline: by `time.time`, after which no row begins.
    without: of races: by work, why some of its backends do not take part.
    """

    kind: ClassVar[str] = "cuda benchmark"
    version: ClassVar[int] = 1
    timed: ClassVar[bool] = True

    rows: Sequence[Row]
    scale: Scale
    deadline: float
    without: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    threads: int = 1

    @property
    def key(self) -> str:
        return key(self.kind, self.version, self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [to_json(row) for row in self.rows],
            "scale": asdict(self.scale),
            "deadline": self.deadline,
            "without": {work: dict(reasons) for work, reasons in self.without.items()},
            "threads": self.threads,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Part":
        own = {"rows": [from_json(row) for row in fields["rows"]], "scale": Scale(**fields["scale"])}
        return cls(**{**fields, **own})

    def run(self, store: Store, tell: Tell) -> dict[str, Any]:
        def say(row: Row, **ended: Any) -> None:
            tell({"event": "note", "text": json.dumps({"row": row.name, **ended}, allow_nan=False)})

        torch.backends.cuda.matmul.allow_tf32 = False  # float32 is held against float64
        for row in self.rows:
            if time.time() >= self.deadline:
                break
            say(row)
            with at_most(self.scale.row_s, lambda row=row: say(row, result=too_long(self.scale))):
                try:
                    result = self.measure(row)
                except Exception as error:  # whatever it is, it is written down
                    result = {"failed": one_line(error)}
            say(row, result=result)
            if not cleared(self.scale.device):
                os._exit(EXIT)
        return {"result": {}}

    def measure(self, row: Row) -> dict[str, Any]:
        """The result, as JSON."""
        if isinstance(row, Compilation):
            from benchmarks.cuda.compilation import compiled

            return dict(compiled(row))
        if isinstance(row, Check):
            from benchmarks.cuda.checks import numbers

            return dict(numbers(row, self.scale))
        assert isinstance(row, Race)
        from benchmarks.cuda.times import measured

        return dict(measured(row, self.scale, self.without.get(row.work, {})))

    def check(self, record: Record) -> None:
        """Whatever it was, its rows have been told."""


def too_long(scale: Scale) -> dict[str, Any]:
    return {"failed": f"not done after {scale.row_s:g} seconds"}


@contextmanager
def at_most(seconds: float, expired: Any) -> Iterator[None]:
    """End the process when that time has gone by, whatever it waits for."""

    def end() -> None:
        expired()
        os._exit(EXIT)

    clock = threading.Timer(seconds, end)
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()


def cleared(device: str) -> bool:
    """Give back what a row took; False where the card is in an error, which no call of this process ends."""
    if device != "cuda":
        return True
    gc.collect()
    torch.compiler.reset()  # graphs of one function are kept for a few kinds of calls
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
