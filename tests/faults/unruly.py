"""A mechanism that misbehaves, as another package's: trials install this file beside ours."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from subquad.mechanisms.linear import LinearAttention

Misbehave = Callable[[Tensor], Tensor]

TOO_LONG = 10**6  # characters, seconds
NOTHING: Any = None


class Unruly(LinearAttention):
    """Linear attention that goes wrong in its tenth pass, and how: by one of `WAYS`."""

    traits = replace(LinearAttention.traits, name="unruly", paper="none")

    def __init__(self, dims, *, causal: bool, how: str = "beget") -> None:
        super().__init__(dims, causal=causal)
        self.how, self.passes = how, 0

    def forward(self, q, k, v, *, valid=None):
        self.passes += 1
        output = super().forward(q, k, v, valid=valid)
        return WAYS[self.how](output) if self.passes >= 10 else output


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no word of it")


def raising(error: BaseException) -> Misbehave:
    def misbehave(output: Tensor) -> Tensor:
        raise error

    return misbehave


def forever(act: Callable[[], object]) -> Misbehave:
    def misbehave(output: Tensor) -> Tensor:
        while True:
            act()

    return misbehave


def first(act: Callable[[], object]) -> Misbehave:
    """Do something, and give what is due."""

    def misbehave(output: Tensor) -> Tensor:
        act()
        return output

    return misbehave


def exhaust(piece: Callable[[], object]) -> Misbehave:
    held = []
    return forever(lambda: held.append(piece()))


def recurse() -> None:
    recurse()


def beget() -> None:
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({TOO_LONG})"])


def leave() -> None:
    beget()
    print("a last word")
    os._exit(0)


WAYS: dict[str, Misbehave] = {
    "beget": first(beget),
    "nan": lambda output: output * torch.nan,
    "infinity": lambda output: output * torch.inf,
    "shape": lambda output: output[..., :-1],
    "nothing": lambda output: NOTHING,
    "lines": raising(RuntimeError("it is lost\nin many\nlines")),
    "wordless": raising(RuntimeError()),
    "long": raising(RuntimeError("x" * TOO_LONG)),
    "strange": raising(ValueError("\x1b[2J\ud800 [red]it[/red] \u202e\r\0is lost")),
    "unspeakable": raising(Unspeakable()),
    "interrupt": raising(KeyboardInterrupt()),
    "exit": raising(SystemExit(0)),
    "recursion": first(recurse),
    "sleep": forever(lambda: time.sleep(TOO_LONG)),
    "busy": forever(lambda: None),
    "stop": first(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "abort": first(os.abort),
    "segment": first(lambda: ctypes.string_at(0)),
    "leave": first(leave),
    "print": forever(lambda: print("y" * 2**16)),
    "write": forever(lambda: os.write(2, b"\xff" * 2**16)),
    "close": first(lambda: os.closerange(0, 2**10)),
    "tensors": exhaust(lambda: torch.empty(2**28)),
    "bytes": exhaust(lambda: bytearray(2**28)),
}
