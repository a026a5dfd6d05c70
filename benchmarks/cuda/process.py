"""A process for rows, which may crash, hang or run out of time.

Executors do more, and ask for packages that a machine with a card, and nothing but PyTorch, may lack.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from benchmarks.cuda.worker import Message, Part

COMMAND = [sys.executable, "-m", "benchmarks.cuda.worker"]


class OutOfTime(Exception):
    """A process was killed at its deadline."""


def run(part: Part, *, timeout: float, hear: Callable[[Message], None]) -> str:
    """Carry out the part in a process of its own. Returns why it ended too early, or nothing if it did not.

    `hear` takes what it tells, from another thread, until the return. Raises `OutOfTime`.
    """
    kind = type(part)
    job = {"type": f"{kind.__module__}:{kind.__qualname__}", "part": part.to_json()}
    path = os.pathsep.join(
        os.path.abspath(folder) for folder in sys.path
    )  # it finds the modules that we find
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,  # held open as long as we live
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=environment,
            text=True,
        )
        assert child.stdin
        assert child.stdout
        listener = threading.Thread(target=listen, args=(child.stdout, hear))
        listener.start()
        try:
            with suppress(BrokenPipeError):  # it is dead already
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        finally:
            with suppress(ProcessLookupError, PermissionError):  # what it started ends with it
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            listener.join()
            with suppress(BrokenPipeError):
                child.stdin.close()
            child.stdout.close()
        log.seek(0)
        return why_ended(code, log.read())


def listen(messages: IO[str], hear: Callable[[Message], None]) -> None:
    """Half a line, of a process that was killed, is none."""
    for line in messages:
        if line.endswith("\n"):
            hear(json.loads(line))


def why_ended(code: int, printed: str) -> str:
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code)})"
    lines = printed.strip().splitlines()
    return "" if code == 0 else lines[-1] if lines else f"ended with status {code}"
