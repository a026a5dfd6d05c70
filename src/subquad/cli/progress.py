"""Progress on standard error, and what Ctrl-C says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from subquad.cli.display import ProgressDisplay
    from subquad.experiments.spec import AnySpec

INTERRUPTED = 130  # 128 + SIGINT, as shells count


@contextmanager
def interruptible() -> Iterator[Console]:
    """A console on standard error, where after Ctrl-C a line says how to go on."""
    console = Console(stderr=True, highlight=False)
    try:
        yield console
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def working(on: str) -> Iterator[None]:
    """On a terminal, a spinner for what takes a few seconds."""
    with interruptible() as console, console.status(on):
        yield


@contextmanager
def watching(specs: Sequence["AnySpec"]) -> Iterator["ProgressDisplay"]:
    """Progress of the runs."""
    from subquad.cli.display import ProgressDisplay

    with interruptible() as console, ProgressDisplay(specs, console) as display:
        yield display
