"""Many runs, each in a process of its own, and as many records.

A run that crashes, hangs, exhausts the memory or talks nonsense costs a result with its reason, and not the
others; what it started ends with it. What is recorded as done is not done again; what failed is tried again,
and so is what a damaged record was of. Several commands may share a folder: a run is claimed before it
starts, and whoever finds it claimed waits for the other's record.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from subquad.documents import Damaged
from subquad.experiments.pipe import Garbled, heard
from subquad.experiments.spec import AnySpec, Bench
from subquad.recorded import check_record
from subquad.records import Record, Store

COMMAND = [sys.executable, "-P", "-m", "subquad.experiments.run"]  # -P: the user's folder shadows no module
CLAIM_POLL_S = 0.5  # seconds between two looks at a run that another process has claimed
SIGNAL_POLL_S = 0.2  # seconds until Ctrl-C is heeded where a signal does not end a wait
EXIT_GRACE_S = 5.0  # seconds in which a run that has told its outcome may end by itself
LOG_CHARACTERS = 4000  # characters kept of what a failed run printed last


class Observer:
    """Is told how the runs are going, from several threads. This one keeps it to itself."""

    def on_skipped(self, spec: AnySpec) -> None:
        """Done before this command, or meanwhile by another one."""

    def on_waiting(self, spec: AnySpec) -> None:
        """Being run by another process."""

    def on_started(self, spec: AnySpec) -> None:
        """In a process of its own from now on."""

    def on_progress(self, spec: AnySpec, progress: dict[str, Any]) -> None:
        """`progress` is a `pipe.Progress`."""

    def on_note(self, spec: AnySpec, text: str) -> None:
        """Something happened that people should know, such as a damaged file."""

    def on_finished(self, spec: AnySpec, record: Record) -> None:
        """And recorded."""


def run_missing(
    specs: Sequence[AnySpec], store: Store, *, observer: Observer, timeout: float, workers: int = 1
) -> list[Record]:
    """Do what is missing of the specs, `workers` at a time, and return the records of all, in their order."""
    grid = Grid(specs, store, observer, timeout=timeout, workers=workers)
    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(grid.do, spec) for spec in grid.pending]
            while True:
                done, others = wait(futures, timeout=SIGNAL_POLL_S, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if not others:
                    break
        except BaseException:  # Ctrl-C, or a full disk: nothing goes on behind its back
            grid.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return store.read(spec.key for spec in specs)


class Grid:
    """A set of runs under way."""

    def __init__(
        self, specs: Sequence[AnySpec], store: Store, observer: Observer, *, timeout: float, workers: int
    ) -> None:
        self.store, self.observer = store, observer
        self.timeout, self.workers = timeout, workers
        self.before = {spec.key: self.recorded(spec) for spec in specs}
        self.pending = [spec for spec in specs if not succeeded(self.before[spec.key])]
        self.children: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.stopped = False
        for spec in specs:
            if spec not in self.pending:
                observer.on_skipped(spec)

    def do(self, spec: AnySpec) -> None:
        """Run it, or wait until another command has."""
        told = False
        while not self.stopped:
            with self.store.claim(spec.key) as mine:
                if mine:
                    latest = self.recorded(spec, claimed=True)
                    if succeeded(latest) or latest != self.before[spec.key]:
                        return self.observer.on_skipped(spec)
                    return self.run(spec)
            if not told:
                self.observer.on_waiting(spec)
                told = True
            time.sleep(CLAIM_POLL_S)

    def recorded(self, spec: AnySpec, *, claimed: bool = False) -> Record | None:
        """The record of a run; None where there is none, or a damaged one.

        Whoever has claimed the run sets a damaged record aside. Others may be looking at its successor.
        """
        try:
            return self.store.get(spec.key)
        except Damaged as damage:
            if claimed:
                kept = self.store.set_aside(spec.key)
                self.observer.on_note(
                    spec, f"{damage}; the run is done again, and the file is kept as {kept.name}"
                )
            return None

    def run(self, spec: AnySpec) -> None:
        self.observer.on_started(spec)
        record = self.isolated(spec) | {"workers": self.workers}
        if self.stopped:
            return
        self.store.put(record)
        if record["status"] not in {"timeout", "out of memory"}:  # these may go on where they were
            self.store.forget_checkpoint(spec.key)
        self.observer.on_finished(spec, record)

    def isolated(self, spec: AnySpec) -> Record:
        """The record of one run in a fresh process."""
        start = time.monotonic()
        token = secrets.token_hex(16)
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            child = self.spawn(spec, token, log.fileno())
            timed_out = threading.Event()

            def expire() -> None:
                timed_out.set()
                kill(child)

            clock = threading.Timer(self.timeout, expire)
            clock.start()
            try:
                said = self.listen(spec, child, token)
            finally:
                clock.cancel()
                self.end(child)
            seconds = time.monotonic() - start
            log.seek(0)
            printed = log.read()[-LOG_CHARACTERS:]
        if "status" not in said:
            status, reason = ended_silently(
                child.returncode, printed, limit=self.timeout if timed_out.is_set() else None
            )
            said |= {"status": status, "reason": reason}
        asked = {"key": spec.key, "kind": spec.kind, "version": spec.version, "spec": spec.to_json()}
        about = {"result": {}, "measured": {}, "data": {}, "machine": {}, "versions": {}}
        record = {**about, **said, **asked, "seconds": seconds}
        try:
            check_record(record)
        except ValueError as error:
            record |= {"status": "failed", "reason": f"what it found is no result: {error}"}
            record |= {"result": {}, "measured": {}, "data": {}}
        return record if record["status"] == "ok" else {**record, "log": printed}

    def spawn(self, spec: AnySpec, token: str, log: int) -> subprocess.Popen[bytes]:
        with self.lock:
            if self.stopped:
                raise RuntimeError("the grid was stopped")
            child = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,  # held open as long as we live
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, and we end our children
                env=environment(spec),
            )
            self.children.add(child)
        asked = {"kind": spec.kind, "spec": spec.to_json(), "folder": str(self.store.folder.absolute())}
        assert child.stdin
        with suppress(BrokenPipeError):  # it is dead already, and will be found so
            child.stdin.write(json.dumps({**asked, "token": token}).encode() + b"\n")
            child.stdin.flush()
        return child

    def listen(self, spec: AnySpec, child: subprocess.Popen[bytes], token: str) -> dict[str, Any]:
        """What the child says of itself, until its outcome or its end."""
        said: dict[str, Any] = {}
        assert child.stdout
        try:
            for name, event in heard(child.stdout.fileno(), token, ended=lambda: child.poll() is not None):
                match name:
                    case "progress":
                        self.observer.on_progress(spec, event)
                    case "note":
                        self.observer.on_note(spec, event["text"])
                    case _:
                        said |= event
        except Garbled as error:
            return said | {"status": "failed", "reason": str(error)}
        try:
            child.wait(EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            return {"status": "failed", "reason": "it closed the pipe of its events", **said}
        return said

    def end(self, child: subprocess.Popen[bytes]) -> None:
        kill(child)
        with self.lock:
            self.children.discard(child)
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe
            with suppress(BrokenPipeError):
                pipe.close()

    def stop(self) -> None:
        """End all runs without a record of them; their checkpoints stay."""
        with self.lock:
            self.stopped = True
            for child in self.children:
                kill(child)


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a run's whole group: also what it started, and what outlived it."""
    with suppress(ProcessLookupError, PermissionError):  # it is empty; macOS says so in its own way
        os.killpg(child.pid, signal.SIGKILL)


def environment(spec: AnySpec) -> dict[str, str]:
    """The variables of a run's process: its threads, and how long they wait awake for one another.

    By libgomp's own 300,000 rounds a fit on two cores was 25 times slower while another process used one of
    them; by 10,000 it is 4 times slower then, and 5 % slower on an idle machine. The bench keeps libgomp's.
    """
    threads = str(spec.threads)
    chosen = {**os.environ, "OMP_NUM_THREADS": threads, "POLARS_MAX_THREADS": threads}
    return chosen if isinstance(spec, Bench) else {"GOMP_SPINCOUNT": "10000", **chosen}


def succeeded(record: Record | None) -> bool:
    return record is not None and record["status"] == "ok"


def ended_silently(code: int, printed: str, *, limit: float | None) -> tuple[str, str]:
    """Status and reason of a run that could not say how it ended; `limit` is the time-out it ran into."""
    if limit is not None:
        return "timeout", f"not done after {limit:g} seconds"
    if code == -9:
        return "out of memory", "killed by signal 9, as the system does when memory runs out"
    if code < 0:
        return "failed", f"killed by signal {-code} ({signal.strsignal(-code)})"
    lines = printed.strip().splitlines()
    return "failed", lines[-1] if lines else f"ended with status {code}"
