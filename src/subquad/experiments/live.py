"""How a set of runs is going, on standard error: bars on a terminal, lines elsewhere."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from subquad.experiments.grid import Watch
from subquad.experiments.spec import AnySpec, Bench, Fit
from subquad.records import Record

EVERY = 15.0  # seconds between two lines of a run where there is no terminal
CALLED = {"fit": "fit", "baseline": "baseline", "bench": "bench cell"}  # a run of each kind


class Mark(NamedTuple):
    """Where a run stood at a moment: from there on its steps are timed."""

    moment: float
    step: int


class Live(Watch):
    """Shows which run of how many, step, loss and time left."""

    def __init__(self, specs: Sequence[AnySpec], console: Console) -> None:
        self.specs, self.console = specs, console
        self.place = {spec.key: place for place, spec in enumerate(specs, 1)}
        self.left = {spec.key: spec for spec in specs}
        self.begun: dict[str, float] = {}
        self.timed: dict[str, Mark] = {}  # by key, from a fit's first step in this command on
        self.projected: dict[str, float] = {}  # by key, the seconds of a whole fit by its steps so far
        self.taken: dict[str, float] = {}  # by key, the seconds of ended runs
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
            if progress["phase"] == "train":
                self.project(spec, progress["step"], progress["steps"])
            self.refresh()
            if not self.console.is_terminal and time.monotonic() > self.said + EVERY:
                self.say(spec, f"{facts}; {self.outlook()}")

    def ended(self, spec: AnySpec, record: Record) -> None:
        with self.lock:
            self.left.pop(spec.key, None)
            self.taken[spec.key] = record["seconds"]
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
            facts += f", {self.outlook()}"
        self.progress.update(self.total, completed=done, facts=facts)

    def project(self, spec: AnySpec, step: int, steps: int) -> None:
        """What the whole fit takes, by the steps that were taken here; a resumed one begins in the middle."""
        now = time.monotonic()
        mark = self.timed.setdefault(spec.key, Mark(now, step))
        if step > mark.step:
            each = (now - mark.moment) / (step - mark.step)
            self.projected[spec.key] = now - self.begun[spec.key] + each * (steps - step)

    def outlook(self) -> str:
        """How long what is left will take, as far as runs of its kind have been timed."""
        untimed: Counter[str] = Counter()
        seconds = {"fit": 0.0, "baseline": 0.0, "bench": 0.0}
        for spec in self.left.values():
            expected = self.expected(spec)
            if expected is None:
                untimed[spec.kind] += 1
            else:
                elapsed = time.monotonic() - self.begun.get(spec.key, time.monotonic())
                seconds[spec.kind] += max(0.0, expected - elapsed)
        total = seconds["baseline"] + seconds["bench"] + seconds["fit"] / max(1, len(self.bars))
        told = [f"about {spoken(total)} left"] if total or not untimed else []
        told += [
            f"{count} {CALLED[kind]}{'s' * (count > 1)} not timed yet" for kind, count in untimed.items()
        ]
        return " and ".join(told)

    def expected(self, spec: AnySpec) -> float | None:
        """The seconds of a run, from its own steps or from runs of its kind; None before any was timed."""
        if spec.key in self.projected:
            return self.projected[spec.key]
        alike = [other for other in self.specs if other.kind == spec.kind]
        known = {**self.projected, **self.taken}
        times = [(other, known[other.key]) for other in alike if other.key in known]
        return fmean(seconds * longer(spec, other) for other, seconds in times) if times else None


def longer(spec: AnySpec, other: AnySpec) -> float:
    """How many times as long a cell of the bench is as another; a shorter one takes as long."""
    if isinstance(spec, Bench) and isinstance(other, Bench):
        return max(1.0, spec.length / other.length)
    return 1.0


def found(record: Record) -> dict[str, float]:
    """The scores of a fit or a baseline."""
    return record["result"].get("test", {})


def spoken(seconds: float) -> str:
    """A duration as people say it: "8 s", "3 min", "2 h 5 min"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
