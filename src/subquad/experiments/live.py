"""How a set of runs is going, on standard error: bars on a terminal, lines elsewhere."""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from subquad.experiments.grid import Watch
from subquad.experiments.spec import AnySpec, Fit
from subquad.records import Record

EVERY = 15.0  # seconds between two lines of a run where there is no terminal
FIRST_GUESS = {"fit": 90.0, "floor": 10.0, "bench": 8.0}  # seconds, until one of its kind is done


class Live(Watch):
    """Shows which run of how many, step, loss and time left."""

    def __init__(self, specs: Sequence[AnySpec], console: Console) -> None:
        self.specs, self.console = specs, console
        self.place = {spec.key: place for place, spec in enumerate(specs, 1)}
        self.left = {spec.key: spec for spec in specs}
        self.begun: dict[str, float] = {}
        self.taken: dict[str, list[float]] = {}  # seconds of ended runs, by kind
        self.bars: dict[str, TaskID] = {}
        self.before = 0  # runs found done, and not yet said so
        self.said = time.monotonic()  # when the latest line was printed
        self.lock = threading.RLock()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.total = self.progress.add_task("all runs", total=len(specs), facts="")

    def __enter__(self) -> "Live":
        self.progress.start()
        self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.say_before()
        self.progress.stop()

    def found(self, spec: AnySpec) -> None:
        with self.lock:
            self.left.pop(spec.key, None)
            self.before += 1
            self.refresh()

    def say_before(self) -> None:
        if self.before:
            self.console.print(f"{self.before} of {len(self.specs)} runs are on record and not done again")
            self.before = 0

    def waiting(self, spec: AnySpec) -> None:
        self.say(spec, "in the hands of another command: waiting for its record")

    def noted(self, spec: AnySpec, text: str) -> None:
        with self.lock:
            self.say(spec, text)

    def started(self, spec: AnySpec) -> None:
        with self.lock:
            self.say_before()
            self.begun[spec.key] = time.monotonic()
            steps = spec.steps if isinstance(spec, Fit) else None
            self.bars[spec.key] = self.progress.add_task(
                self.name(spec), total=steps, facts="starting" if steps else "under way"
            )
            if not self.console.is_terminal:
                self.say(spec, "started")

    def moved(self, spec: AnySpec, progress: dict[str, Any]) -> None:
        with self.lock:
            facts = progress["phase"]
            if progress["phase"] in {"train", "validate"}:
                facts += f" step {progress['step']} of {progress['steps']}"
            if progress["loss"] is not None:
                facts += f", loss {progress['loss']:.4f}"
            self.progress.update(self.bars[spec.key], completed=progress["step"], facts=facts)
            self.refresh()
            if not self.console.is_terminal and time.monotonic() > self.said + EVERY:
                self.say(spec, f"{facts}; about {spoken(self.remaining())} left of all")

    def ended(self, spec: AnySpec, record: Record) -> None:
        with self.lock:
            self.left.pop(spec.key, None)
            self.taken.setdefault(spec.kind, []).append(record["seconds"])
            self.progress.remove_task(self.bars.pop(spec.key))
            if record["status"] == "ok":
                scores = ", ".join(f"{name} {value:.4f}" for name, value in found(record).items())
                self.say(spec, f"{scores + ', ' if scores else ''}{spoken(record['seconds'])}")
            else:
                self.say(spec, f"{record['status']}: {record['reason']}", style="red")
            self.refresh()

    def name(self, spec: AnySpec) -> str:
        return f"run {self.place[spec.key]} of {len(self.specs)}: {spec.label}"

    def say(self, spec: AnySpec, text: str, *, style: str = "") -> None:
        self.said = time.monotonic()
        self.console.print(Text(f"{self.name(spec)}: {text}", style=style), soft_wrap=True)

    def refresh(self) -> None:
        done = len(self.specs) - len(self.left)
        facts = f"{done} of {len(self.specs)} done"
        if self.left:
            facts += f", about {spoken(self.remaining())} left"
        self.progress.update(self.total, completed=done, facts=facts)

    def remaining(self) -> float:
        """Seconds still to come: runs under way by their steps, the others by those of their kind before."""
        now = time.monotonic()
        total = 0.0
        for key, spec in self.left.items():
            expected = self.expected(spec.kind)
            if key in self.begun:
                elapsed = now - self.begun[key]
                task = next((task for task in self.progress.tasks if task.id == self.bars.get(key)), None)
                if task is not None and task.total and task.completed:
                    expected = elapsed * task.total / task.completed
                expected = max(0.0, expected - elapsed)
            total += expected
        return total / max(1, len(self.bars))

    def expected(self, kind: str) -> float:
        taken = self.taken.get(kind)
        return sum(taken) / len(taken) if taken else FIRST_GUESS[kind]


def found(record: Record) -> dict[str, float]:
    """The scores of a fit or a floor."""
    return record["result"].get("test", {})


def spoken(seconds: float) -> str:
    """A duration as people say it: "8 s", "3 min", "2 h 5 min"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
