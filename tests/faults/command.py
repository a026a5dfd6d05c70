"""The command line in processes of their own, each run in one as well, and what can be done to these."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import subquad
from subquad.records import Store

MARK = "SUBQUAD_TRIAL"  # the variable by which a command's processes are known
SIZES = ["--dim", "8", "--depth", "1", "--heads", "2", "--batch", "8", "--device", "cpu", "--no-bench"]
MECHANISM = "linear"
STEPS = 100  # of a fit, with a checkpoint every 25
LONGEST_S = 600.0  # that a command may take: more is a fault
POLL_S = 0.01
ENDS_WITHIN_S = 4.0  # what a command started, once it is dead; a run would end by itself a little later

Processes = list[int]


class Ended(NamedTuple):
    """How a command ended. status: negative for a signal."""

    status: int
    out: str
    told: str  # on standard error

    def wrong(self, *statuses: int) -> str:
        """What is wrong with an end that should be one of these, and be told in lines; "" for nothing."""
        if self.status not in statuses:
            return f"ended with {self.status}: {self.told[-300:]}"
        said = self.out + self.told
        if "Traceback" in said or "internal error" in said:
            return f"it told a traceback: {said[-300:]}"
        if control := {letter for letter in said if ord(letter) < 32} - {"\n"}:
            return f"it printed the characters {control}"
        return ""


class Running:
    """A command that has been started. Its output goes to files, which keep nobody waiting."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.mark = f"{MARK}={secrets.token_hex(8)}"
        name, _, value = self.mark.partition("=")
        self.paths = folder / "out", folder / "told"
        self.until = time.monotonic() + LONGEST_S
        with self.paths[0].open("w") as out, self.paths[1].open("w") as told:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "subquad", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=told,
                start_new_session=True,
                env={**os.environ, **environment, name: value},
            )

    def over(self) -> bool:
        """Whether it has ended. What takes too long is killed."""
        if time.monotonic() > self.until:
            self.kill(self.processes())
        return self.process.poll() is not None

    def end(self) -> Ended:
        """Wait for it."""
        while not self.over():
            time.sleep(POLL_S)
        out, told = (path.read_text(errors="replace") for path in self.paths)
        return Ended(self.process.returncode, out, told)

    def processes(self, *, running: bool = False) -> Processes:
        """Those of the command and of what it started, or those `running` a spec alone."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is another's
                variables = (path / "environ").read_bytes().split(b"\0")
                run = b"subquad.executors.child" in (path / "cmdline").read_bytes().split(b"\0")
                if self.mark.encode() in variables and (run or not running):
                    found.append(int(path.name))
        return found

    def kill(self, processes: Processes) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def left(self) -> str:
        """What goes on after the command has ended, and is ended now; "" for nothing."""
        until = time.monotonic() + ENDS_WITHIN_S
        while processes := self.processes():
            if time.monotonic() > until:
                self.kill(processes)
                return f"{len(processes)} processes were left behind"
            time.sleep(POLL_S)
        return ""


class Command:
    """`subquad compare`, with what it gives undisturbed.

    arguments: of the comparison.
    packages: a folder of packages that are installed beside those that are.
    """

    def __init__(self, folder: Path, *arguments: str, packages: Path | None = None) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.arguments = ["compare", *arguments, "--attention", MECHANISM, *SIZES, "--steps", str(STEPS)]
        sources = Path(subquad.__file__).parents[1]
        self.environment = {
            "PYTHONPATH": os.pathsep.join(map(str, filter(None, (sources, packages)))),
            "SUBQUAD_CACHE": str(self.cache),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        folder.mkdir(parents=True)
        self.whole = Store(folder / "undisturbed")
        start = time.monotonic()
        ended = self.run(self.whole)
        assert ended.status == 0, ended
        self.seconds = time.monotonic() - start

    def start(self, store: Store, *more: str, environment: Mapping[str, str] | None = None) -> Running:
        """Begin what is missing. more: arguments, of which the last ones count."""
        arguments = [*self.arguments, *more, "--out", str(store.folder)]
        return Running(arguments, self.folder, {**self.environment, **(environment or {})})

    def run(self, store: Store, *more: str, environment: Mapping[str, str] | None = None) -> Ended:
        return self.start(store, *more, environment=environment).end()
