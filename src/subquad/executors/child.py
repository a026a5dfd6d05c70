"""One run in a process of its own: `python -m subquad.executors.child`, started by `local`.

The first line of standard input says what to run; the parent then keeps the pipe open, and when it closes,
however the parent died, this process ends too, with all that it started. Standard output carries events as
`pipe` describes them. Whatever libraries print goes to standard error.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from subquad.executors.local import find_class
from subquad.executors.outcome import outcome, surroundings
from subquad.executors.pipe import Job, encode
from subquad.records import Store


def main() -> None:
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job: Job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, args=(sys.stdin,), daemon=True).start()
    sys.path += [folder for folder in job["path"] if folder not in sys.path]

    def tell(event: Any) -> None:
        events.write(encode(event, job["token"]))

    spec = find_class(job["type"]).from_json(job["spec"])
    tell({"event": "start", **surroundings(spec)})
    ended = outcome(spec, Store(Path(job["folder"])), tell)
    sys.stderr.write(ended.pop("log", ""))
    tell({"event": "outcome", **ended})


def end_with_parent(stdin: TextIO) -> None:
    stdin.read()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
