"""A comparison in a process of its own, and what can be done to that process."""

import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from experiments_sample import changed, quick
from own_sample import write

from faults.disturbances import Commands
from subquad import tasks
from subquad.executors import Executor, run_here
from subquad.experiments import fit, run, training
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.spec import Baseline
from subquad.records import Store

Act = Callable[[], None]

KILLED = -signal.SIGKILL
CHECKPOINT_EVERY = 2  # steps


class Inline(Executor):
    """Runs each spec in this process, which takes a hundredth of the time of starting one."""

    name = "inline"

    def run(self, spec: Any, store: Store, tell: Any) -> Any:
        return run_here(spec, store, tell)

    def stop(self) -> None:
        pass


class Notes(Observer):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_note(self, spec: Any, text: str) -> None:
        self.texts.append(text)


class Bench:
    """Two fits and a baseline, their data, and what they give undisturbed; and the same by the command line.

    Latency and memory, which no fault can make wrong without notice, are not measured.
    """

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        schema = write(folder / "own")
        self.data = tasks.load("custom", schema=str(schema))
        first = changed(quick(schema, self.data), training={"steps": 8}, validate=4, warmup=1)
        second = changed(first, mechanism={"attention": "softmax"})
        baseline = Baseline(data=first.data, baseline="majority", seed=0, place=first.place)
        self.specs: Sequence[Any] = (baseline, first, second)
        self.whole = Store(folder / "undisturbed")
        start = time.monotonic()
        status, reason = self.start(self.whole, lambda: self.count_writes(folder / "writes"))
        assert status == 0, reason
        self.seconds = time.monotonic() - start
        self.writes = int((folder / "writes").read_text())
        self.commands = Commands(folder / "commands")

    def start(
        self, store: Store, prepare: Act = lambda: None, *, after: float | None = None
    ) -> tuple[int, str]:
        """Run what is missing; how the process ended, and what it said.

        prepare: called in it before the runs.
        after: seconds until it is killed; None: it is not.
        """
        said = self.folder / "said"
        said.write_text("")
        process = os.fork()
        if process == 0:
            code = 1
            try:
                self.compare(store, prepare)
                code = 0
            except (OSError, ValueError) as error:  # what the command line says in one line
                said.write_text(str(error))
                code = 2
            except BaseException:
                said.write_text(traceback.format_exc())
            finally:
                os._exit(code)
        if after is not None:
            time.sleep(after)
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        return os.waitstatus_to_exitcode(status), said.read_text()

    def compare(self, store: Store, prepare: Act) -> None:
        run.load = lambda spec: self.data
        fit.cost = lambda training: {}
        training.CHECKPOINT_EVERY = CHECKPOINT_EVERY
        prepare()
        notes = Notes()
        run_missing(self.specs, store, executor=Inline(slots=1, timeout=600), observer=notes)
        with (self.folder / "notes").open("a") as file:
            file.writelines(f"{text}\n" for text in notes.texts)

    def count_writes(self, path: Path) -> None:
        seen = 0

        def count(descriptor: int | None) -> None:
            nonlocal seen
            seen += 1
            path.write_text(str(seen))

        at_writes(count)


def at_writes(act: Callable[[int | None], None]) -> None:
    """Call `act` before each file is on the disk, with its descriptor, and before and after it is renamed."""
    fsync, rename = os.fsync, os.replace

    def written(descriptor: int) -> None:
        act(descriptor)
        fsync(descriptor)

    def renamed(*names: Any, **options: Any) -> None:
        act(None)
        rename(*names, **options)
        act(None)

    os.fsync, os.replace = written, renamed


def at_write(number: int, act: Callable[[int | None], None]) -> Act:
    """Prepares a process to do something at its n-th write."""
    seen = 0

    def count(descriptor: int | None) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            act(descriptor)

    return lambda: at_writes(count)


def cut_and_die(descriptor: int | None) -> None:
    """As if killed in the middle of a write: half of it is there."""
    if descriptor is not None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(descriptor: int | None) -> None:
    if descriptor is not None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    raise OSError(28, "No space left on device")


def limit_files(size: int) -> Act:
    """The system itself refuses to let a file grow beyond so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def at_step(number: int, act: Act) -> Act:
    """Prepares a process to do something before its n-th step of training, over all fits."""
    seen, step = 0, training.Training.step

    def counted(self: training.Training, batches: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == number:
            act()
        return step(self, batches)

    def prepare() -> None:
        training.Training.step = counted

    return prepare


def exhaust() -> None:
    """Ask the native allocator for more than the process may have."""
    most = 2**36
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    torch.empty(most)


def device_exhausted() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_memory() -> None:
    raise MemoryError
