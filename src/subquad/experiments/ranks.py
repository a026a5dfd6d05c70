"""The processes that train one model together, each on a device of its own.

The first rank is the run's own process, which alone validates and writes; it starts the others, and ends them
however it ends itself. They are in its group of processes, so that whoever kills the run kills them, too.
"""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from subquad.documents import read_json, write_json
from subquad.executors.local import silent_end
from subquad.executors.outcome import failure
from subquad.experiments.spec import Fit
from subquad.experiments.training import Training

WAIT = timedelta(days=1)  # for the first rank while it validates: how long a run may take, its executor says
NOTICE_S = 5.0  # until the first rank knows why another is gone
LEAVE_S = 10.0  # in which the first rank notices by itself that another is gone
RAISED = {"not finite": FloatingPointError, "out of memory": MemoryError}  # by what `failure` makes of them


@contextmanager
def group_of(spec: Fit, checkpoint_path: Path) -> Iterator[None]:
    """Within, this process is the first of as many ranks as the spec has devices, and the others train too.

    Nothing happens where there is one. What another rank raises is raised here, with its rank.
    """
    if spec.training.devices == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="subquad-") as folder:
        others = Others(spec, checkpoint_path, Path(folder))
        try:
            with member(0, spec, folder):
                try:
                    yield
                except FloatingPointError:  # of all ranks alike
                    raise
                except Exception as error:
                    raise others.error() or error from None
        finally:
            others.end()


class Others:
    """The ranks behind the first, each a process, and a thread that sees them end.

    Where one is gone and the first rank does not notice, since it waits for it (NCCL does, and the meeting at
    the start), the thread ends this process with the reason as the last line that it prints.
    """

    def __init__(self, spec: Fit, checkpoint_path: Path, folder: Path) -> None:
        self.folder = folder
        self.left, self.lost = threading.Event(), threading.Event()
        self.codes: dict[int, int] = {}  # of the ranks that are gone, how each ended
        self.processes = [
            get_context("spawn").Process(
                target=follow, args=(rank, spec.to_json(), str(checkpoint_path), str(folder))
            )
            for rank in range(1, spec.training.devices)
        ]
        for process in self.processes:
            process.start()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def watch(self) -> None:
        running = {process.sentinel: rank for rank, process in enumerate(self.processes, start=1)}
        while running:
            for sentinel in wait(list(running)):
                rank = running.pop(sentinel)  # pyright: ignore[reportArgumentType]  # a number here
                process = self.processes[rank - 1]
                process.join()  # its end of the sentinel closes before it has a status
                if not process.exitcode:
                    continue
                self.codes[rank] = process.exitcode
                self.lost.set()
                if not self.left.wait(LEAVE_S):
                    sys.stderr.write(f"{self.error()}\n")
                    sys.stderr.flush()
                    os._exit(1)
                return

    def error(self) -> Exception | None:
        """Why another rank is gone: it was killed, or was the first to raise; None where all are there."""
        raised = sorted(self.folder.glob("rank *.json"), key=lambda path: path.stat().st_mtime_ns)
        if not raised and not self.lost.wait(NOTICE_S):
            return None
        for rank, code in self.codes.items():
            if code < 0 or not raised:
                status, reason = silent_end(code, "", limit=None)
                return RAISED.get(status, RuntimeError)(f"rank {rank}: {reason}")
        told = read_json(raised[0])
        return RAISED.get(told["status"], RuntimeError)(f"{raised[0].stem}: {told['reason']}")

    def end(self) -> None:
        self.left.set()
        for process in self.processes:
            process.kill()
        self.watcher.join()
        for process in self.processes:
            process.join()


def follow(rank: int, document: dict[str, Any], checkpoint_path: str, folder: str) -> None:
    """What a rank behind the first does, in a process of its own."""
    from subquad.experiments.run import load

    threading.Thread(target=end_with_first, daemon=True).start()
    spec = Fit.from_json(document)
    with member(rank, spec, folder):
        try:
            path = Path(checkpoint_path)
            Training(spec, load(spec.data), checkpoint_path=path, tell=silent, note=silent).run()
        except Exception as error:
            write_json(Path(folder) / f"rank {rank}.json", failure(error))  # before the others notice
            raise


def end_with_first() -> None:
    first = parent_process()
    assert first is not None
    wait([first.sentinel])
    os._exit(1)


@contextmanager
def member(rank: int, spec: Fit, folder: str) -> Iterator[None]:
    """Within, this process is of that rank in the group that meets in a folder, with its share of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // spec.training.devices))
    backend = "nccl" if spec.place.device == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=spec.training.devices,
        timeout=WAIT,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)


def silent(*_: Any) -> None:
    """The first rank tells."""
