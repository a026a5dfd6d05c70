"""Rows measured one after the other in a process of their own, each told of as soon as it is known.

A row that takes too long, or leaves the card in an error, ends the process: errors of the card stay with it,
and the rows behind go on in another one.
"""

import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import reduce
from importlib import import_module
from typing import Any, NotRequired, TextIO, TypedDict

import torch

from benchmarks.cuda.contenders import one_line
from benchmarks.cuda.plan import Check, Compilation, Race, Row, Scale, from_json, to_json

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

    rows: Sequence[Row]
    scale: Scale
    deadline: float
    without: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [to_json(row) for row in self.rows],
            "scale": asdict(self.scale),
            "deadline": self.deadline,
            "without": {work: dict(reasons) for work, reasons in self.without.items()},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Part":
        own = {"rows": [from_json(row) for row in fields["rows"]], "scale": Scale(**fields["scale"])}
        return cls(**{**fields, **own})

    def run(self, tell: Callable[[Message], None]) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 is held against float64
        torch.set_num_threads(1)
        for row in self.rows:
            if time.time() >= self.deadline:
                break
            tell(Message(row=row.name))
            late = Message(row=row.name, result={"failed": f"not done after {self.scale.row_s:g} seconds"})
            with at_most(self.scale.row_s, lambda late=late: tell(late)):
                try:
                    result = self.measure(row)
                except Exception as error:  # whatever it is, it is written down
                    result = {"failed": one_line(error)}
            tell(Message(row=row.name, result=result))
            if not cleared(self.scale.device):
                os._exit(EXIT)

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


@contextmanager
def at_most(seconds: float, expired: Callable[[], None]) -> Iterator[None]:
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


def main() -> None:
    """One line of standard input says what to do; standard output takes a message a line, nothing else."""
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, args=(sys.stdin,), daemon=True).start()
    module, _, name = job["type"].partition(":")
    part = reduce(getattr, name.split("."), import_module(module))
    part.from_json(job["part"]).run(
        lambda message: messages.write(json.dumps(message, allow_nan=False) + "\n")
    )


def end_with_parent(stdin: TextIO) -> None:
    stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
