"""Progress on standard error, and what Ctrl-C says."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from subquad.cli.display import ProgressDisplay
    from subquad.experiments.spec import AnySpec

LINE_INTERVAL_S = 15.0  # seconds between two lines where there is no terminal
INTERRUPTED = 130  # 128 + SIGINT, as shells count


@contextmanager
def interruptible(*, resumes: bool = True) -> Iterator[Console]:
    """A console on standard error, where after Ctrl-C a line says whether the same command goes on."""
    console = Console(stderr=True, highlight=False)
    try:
        yield console
    except KeyboardInterrupt:
        console.print("interrupted; the same command " + ("goes on from here" if resumes else "begins anew"))
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def working(on: str) -> Iterator[None]:
    """On a terminal, a spinner for what takes a few seconds."""
    with interruptible() as console, console.status(on):
        yield


@contextmanager
def preparing(on: str, *, resumes: bool = True) -> Iterator[Callable[[str, float | None], None]]:
    """On a terminal, bars for what takes a few seconds, and for what takes longer meanwhile.

    Call it with what is done, and the share of it that is; None: another process does it.
    """
    with interruptible(resumes=resumes) as console, PreparingDisplay(on, console) as display:
        yield display.tell


class PreparingDisplay:
    """A bar for each thing on a terminal; elsewhere a line now and then, none for what takes no time."""

    def __init__(self, on: str, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bars.add_task(on, total=None)
        self.known: dict[str, TaskID] = {}
        self.printed_at = time.monotonic()

    def __enter__(self) -> "PreparingDisplay":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def tell(self, doing: str, share: float | None) -> None:
        if share is None:
            self.console.print(f"{doing}: another process is at it: waiting", soft_wrap=True, markup=False)
            return
        if doing not in self.known:
            self.known[doing] = self.bars.add_task(doing, total=1.0)
        self.bars.update(self.known[doing], completed=share)
        if not self.console.is_terminal and time.monotonic() > self.printed_at + LINE_INTERVAL_S:
            self.printed_at = time.monotonic()
            self.console.print(f"{doing}: {share:.0%}", soft_wrap=True, markup=False)


@contextmanager
def watching(specs: Sequence["AnySpec"]) -> Iterator["ProgressDisplay"]:
    """Progress of the runs. What is printed meanwhile, as Ray does of workers that die, is no result."""
    from subquad.cli.display import ProgressDisplay

    with (
        interruptible() as console,
        ProgressDisplay(specs, console) as display,
        redirect_stdout(sys.stderr),
    ):
        yield display
