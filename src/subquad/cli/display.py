"""How a set of runs is going, on standard error: bars on a terminal, lines elsewhere."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from subquad.cli.progress import LINE_INTERVAL_S
from subquad.executors import Progress
from subquad.experiments.grid import Observer
from subquad.experiments.spec import AnySpec, Baseline, Bench, DataSpec, Fit
from subquad.records import Record

NOUNS = {"fit": "fit", "baseline": "baseline", "bench": "bench cell", "stream": "stream"}  # runs by kind
REFRESH_S = 1.0  # between two outlooks, which look at all runs


class Step(NamedTuple):
    """Where a run stood at a moment: from there on its steps are timed."""

    moment: float
    step: int


class ProgressDisplay(Observer):
    """Shows which run of how many, step, loss and time left."""

    def __init__(self, specs: Sequence[AnySpec], console: Console) -> None:
        self.specs, self.console = specs, console
        data = [it for spec in specs if (it := data_of(spec))]
        self.several_tasks = any(it != data[0] for it in data)
        self.position = {spec.key: position for position, spec in enumerate(specs, 1)}
        self.remaining = {spec.key: spec for spec in specs}
        self.started_at: dict[str, float] = {}
        self.first_step: dict[str, Step] = {}  # by key, from a fit's first step in this command on
        self.projected: dict[str, float] = {}  # by key, the seconds of a whole fit by its steps so far
        self.durations: dict[str, float] = {}  # by key, the seconds of ended runs
        self.bars: dict[str, TaskID] = {}
        self.skipped = 0  # runs found done, and not yet said so
        self.printed_at = time.monotonic()  # when the latest line was printed
        self.refreshed_at = 0.0  # when the outlook was worked out
        self.lock = threading.RLock()
        self.progress = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.total = self.progress.add_task("all runs", total=len(specs), facts="")

    def __enter__(self) -> "ProgressDisplay":
        self.progress.start()
        self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.print_skipped()
        self.progress.stop()

    def on_skipped(self, spec: AnySpec) -> None:
        with self.lock:
            self.remaining.pop(spec.key, None)
            self.skipped += 1
            self.refresh()

    def print_skipped(self) -> None:
        if self.skipped:
            self.console.print(f"{self.skipped} of {len(self.specs)} runs are on record and not done again")
            self.skipped = 0

    def on_waiting(self, spec: AnySpec) -> None:
        self.print_line(spec, "being run by another process: waiting for its record")

    def on_note(self, spec: AnySpec, text: str) -> None:
        with self.lock:
            self.print_line(spec, text)

    def on_started(self, spec: AnySpec) -> None:
        with self.lock:
            self.print_skipped()
            self.started_at[spec.key] = time.monotonic()
            steps = spec.training.steps if isinstance(spec, Fit) else None
            self.bars[spec.key] = self.progress.add_task(
                self.name(spec), total=steps, facts="starting" if steps else "under way"
            )
            if not self.console.is_terminal:
                self.print_line(spec, "started")

    def on_progress(self, spec: AnySpec, progress: Progress) -> None:
        with self.lock:
            facts = progress["phase"]
            if progress["phase"] in {"train", "validate"}:
                facts += f" step {progress['step']} of {progress['steps']}"
            if progress["loss"] is not None:
                facts += f", loss {progress['loss']:.4f}"
            if node := progress.get("node"):
                facts += f" on {node}"
            self.progress.update(self.bars[spec.key], completed=progress["step"], facts=facts)
            if progress["phase"] == "train":
                self.project(spec, progress["step"], progress["steps"])
            if time.monotonic() > self.refreshed_at + REFRESH_S:
                self.refresh()
            if not self.console.is_terminal and time.monotonic() > self.printed_at + LINE_INTERVAL_S:
                self.print_line(spec, f"{facts}; {self.outlook()}")

    def on_finished(self, spec: AnySpec, record: Record) -> None:
        with self.lock:
            self.remaining.pop(spec.key, None)
            self.durations[spec.key] = record["seconds"]
            self.progress.remove_task(self.bars.pop(spec.key))
            if record["status"] == "ok":
                shown = ", ".join(f"{name} {value:.4f}" for name, value in scores(record).items())
                self.print_line(spec, f"{shown + ', ' if shown else ''}{format_duration(record['seconds'])}")
            else:
                self.print_line(spec, f"{record['status']}: {record['reason']}", style="red")
            self.refresh()

    def name(self, spec: AnySpec) -> str:
        data = data_of(spec)
        task = f"{data.task}: " if data and self.several_tasks else ""
        return f"run {self.position[spec.key]} of {len(self.specs)}: {task}{spec.label}"

    def print_line(self, spec: AnySpec, text: str, *, style: str = "") -> None:
        self.printed_at = time.monotonic()
        self.console.print(Text(f"{self.name(spec)}: {text}", style=style), soft_wrap=True)

    def refresh(self) -> None:
        self.refreshed_at = time.monotonic()
        done = len(self.specs) - len(self.remaining)
        facts = f"{done} of {len(self.specs)} done"
        if self.remaining:
            facts += f", {self.outlook()}"
        self.progress.update(self.total, completed=done, facts=facts)

    def project(self, spec: AnySpec, step: int, steps: int) -> None:
        """What the whole fit takes, by the steps that were taken here; a resumed one begins in the middle."""
        now = time.monotonic()
        first = self.first_step.setdefault(spec.key, Step(now, step))
        if step > first.step:
            each = (now - first.moment) / (step - first.step)
            self.projected[spec.key] = now - self.started_at[spec.key] + each * (steps - step)

    def outlook(self) -> str:
        """How long what is left will take, as far as runs of its kind have been timed."""
        untimed: Counter[str] = Counter()
        seconds = dict.fromkeys(NOUNS, 0.0)
        for spec in self.remaining.values():
            expected = self.expected(spec)
            if expected is None:
                untimed[spec.kind] += 1
            else:
                elapsed = time.monotonic() - self.started_at.get(spec.key, time.monotonic())
                seconds[spec.kind] += max(0.0, expected - elapsed)
        fits = seconds.pop("fit") / max(1, len(self.bars))
        total = fits + sum(seconds.values())
        parts = [f"about {format_duration(total)} left"] if total or not untimed else []
        parts += [
            f"{count} {NOUNS[kind]}{'s' * (count > 1)} not timed yet" for kind, count in untimed.items()
        ]
        return " and ".join(parts)

    def expected(self, spec: AnySpec) -> float | None:
        """The seconds of a run, from its own steps or from runs of its kind, on its task where there are any.

        None before any was timed.
        """
        if spec.key in self.projected:
            return self.projected[spec.key]
        known = {**self.projected, **self.durations}
        timed = [other for other in self.specs if other.kind == spec.kind and other.key in known]
        alike = [other for other in timed if data_of(other) == data_of(spec)]
        times = [(other, known[other.key]) for other in alike or timed]
        return fmean(seconds * relative_length(spec, other) for other, seconds in times) if times else None


def data_of(spec: AnySpec) -> DataSpec | None:
    """What it trains or judges on; None where it measures alone."""
    return spec.data if isinstance(spec, Fit | Baseline) else None


def relative_length(spec: AnySpec, other: AnySpec) -> float:
    """How many times as long a cell of the bench is as another; a shorter one takes as long."""
    if isinstance(spec, Bench) and isinstance(other, Bench):
        return max(1.0, spec.length / other.length)
    return 1.0


def scores(record: Record) -> dict[str, float]:
    """The scores of a fit or a baseline."""
    return record["result"].get("test", {})


def format_duration(seconds: float) -> str:
    """A duration as people say it: "8 s", "3 min", "2 h 5 min"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
