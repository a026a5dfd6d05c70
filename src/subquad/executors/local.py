"""A process a run, on this machine.

A run that crashes, hangs, exhausts the memory or talks nonsense costs a result with its reason, and not the
others; what it started ends with it. It is a group of processes of its own, so that Ctrl-C reaches the parent
alone, which then ends the group.
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
from contextlib import suppress
from functools import reduce
from importlib import import_module
from typing import Any

from subquad.executors.events import Tell
from subquad.executors.executor import Executor, Spec
from subquad.executors.outcome import LOG_CHARACTERS, first_line, make_record, shown
from subquad.executors.pipe import Job, ProtocolError, read_events
from subquad.records import Record, Store

COMMAND = [sys.executable, "-P", "-m", "subquad.executors.child"]  # -P: the user's folder shadows no module
MAX_LOG_BYTES = 2**28  # that a run may print before it is ended
EXIT_GRACE_S = 5.0  # seconds in which a run that has told its outcome may end by itself


class Local(Executor):
    """Runs each spec in a fresh process.

    slots: processes at a time, each with its spec's threads.
    timeout: seconds after which a process is killed.
    """

    name = "local"

    def __init__(self, *, slots: int = 1, timeout: float) -> None:
        super().__init__(slots=slots, timeout=timeout)
        self.children: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def run(self, spec: Spec, store: Store, tell: Tell) -> Record:
        start = time.monotonic()
        token = secrets.token_hex(16)
        with tempfile.TemporaryFile() as log:
            child = self.spawn(spec, token, log.fileno())
            if child is None:
                return make_record(spec, {"status": "failed", "reason": "it was stopped"}, seconds=0.0)
            timed_out = threading.Event()

            def expire() -> None:
                timed_out.set()
                kill(child)

            clock = threading.Timer(self.timeout, expire)
            clock.start()
            try:
                send(child, job(spec, store, token))
                facts = listen(child, token, tell, log.fileno())
            finally:
                clock.cancel()
                self.end(child)
            seconds = time.monotonic() - start
            printed = last_printed(log.fileno())
        if "status" not in facts:
            limit = self.timeout if timed_out.is_set() else None
            status, reason = silent_end(child.returncode, printed, limit=limit)
            facts |= {"status": status, "reason": reason}
        record = make_record(spec, facts, seconds=seconds)
        return record if record["status"] == "ok" else {**record, "log": printed}

    def spawn(self, spec: Spec, token: str, log: int) -> subprocess.Popen[bytes] | None:
        """A process that waits for its job; None after `stop`."""
        with self.lock:
            if self.stopped:
                return None
            child = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,  # held open as long as we live
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=environment(spec),
            )
            self.children.add(child)
        return child

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
        with self.lock:
            self.stopped = True
            for child in self.children:
                kill(child)


def job(spec: Spec, store: Store, token: str) -> Job:
    """What the child has to do; it finds the modules that we find."""
    return Job(
        type=type_name(spec),
        spec=spec.to_json(),
        folder=str(store.folder.absolute()),
        path=module_folders(),
        token=token,
    )


def module_folders() -> list[str]:
    """Where this process finds modules."""
    return [os.path.abspath(folder) for folder in sys.path]


def type_name(spec: Spec) -> str:
    """ "module:class", as `find_class` reads it."""
    return f"{type(spec).__module__}:{type(spec).__qualname__}"


def find_class(name: str) -> type[Spec]:
    """The class that "module:class" stands for."""
    module, _, qualified = name.partition(":")
    return reduce(getattr, qualified.split("."), import_module(module))  # pyright: ignore[reportReturnType]


def send(child: subprocess.Popen[bytes], job: Job) -> None:
    assert child.stdin
    with suppress(BrokenPipeError):  # it is dead already, and `listen` will see that
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.flush()


def listen(child: subprocess.Popen[bytes], token: str, tell: Tell, log: int) -> dict[str, Any]:
    """What the child tells of itself, until its outcome or its end; progress and notes are handed on.

    log: the file of what it prints, which is not to fill the disk.
    """
    facts: dict[str, Any] = {}

    def flooded() -> bool:
        return os.fstat(log).st_size > MAX_LOG_BYTES

    def ended() -> bool:
        return child.poll() is not None or flooded()

    assert child.stdout
    try:
        for event in read_events(child.stdout.fileno(), token, ended=ended):
            if event["event"] in {"progress", "note"}:
                tell(event)  # pyright: ignore[reportArgumentType]  # `pipe` has validated it
            else:
                facts |= {name: value for name, value in event.items() if name != "event"}
    except ProtocolError as error:
        return facts | {"status": "failed", "reason": first_line(error)}
    if "status" not in facts and flooded():
        return facts | {"status": "failed", "reason": f"it printed more than {MAX_LOG_BYTES:,} bytes"}
    try:
        child.wait(EXIT_GRACE_S)
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": "it closed the pipe of its events", **facts}
    return facts


def last_printed(log: int) -> str:
    """The end of what a run printed."""
    size = 4 * LOG_CHARACTERS  # bytes: a character of UTF-8 has four at most
    start = max(0, os.fstat(log).st_size - size)
    return os.pread(log, size, start).decode(errors="replace")[-LOG_CHARACTERS:]


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a run's whole group: also what it started, and what outlived it."""
    with suppress(ProcessLookupError, PermissionError):  # it is empty; macOS says so in its own way
        os.killpg(child.pid, signal.SIGKILL)


def environment(spec: Spec) -> dict[str, str]:
    """The variables of a run's process: its threads, and how long they wait awake for one another.

    By libgomp's own 300,000 rounds a fit on two cores was 25 times slower while another process used one of
    them; by 10,000 it is 4 times slower then, and 5 % slower on an idle machine. What is timed
    keeps libgomp's.
    """
    threads = str(spec.threads)
    chosen = {**os.environ, "OMP_NUM_THREADS": threads, "POLARS_MAX_THREADS": threads}
    return chosen if spec.timed else {"GOMP_SPINCOUNT": "10000", **chosen}


def silent_end(code: int, printed: str, *, limit: float | None) -> tuple[str, str]:
    """Status and reason of a run that could not tell its outcome; `limit` is the time-out it ran into."""
    if limit is not None:
        return "timeout", f"not done after {limit:g} seconds"
    if code == -9:
        return "out of memory", "killed by signal 9, as the system does when memory runs out"
    if code < 0:
        return "failed", f"killed by signal {-code} ({signal.strsignal(-code)})"
    lines = printed.strip().splitlines() if code else []  # what says that all is well is no reason
    return "failed", shown(lines[-1]) if lines else f"ended with status {code}"
