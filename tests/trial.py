"""One check of one mechanism on a copy of the package, in a process of its own.

The process is forked from one that has loaded what takes long: torch and its compiler.
"""

import os
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

SECONDS = 300

forks = get_context("forkserver")
forks.set_forkserver_preload(["jaxtyping", "torch._inductor.compile_fx"])


def trial(package: Path, mechanism: str, check: str, **environment: str) -> tuple[bool, str]:
    """Whether `check` passes on the package that lies in the folder `package`, and what it says if not."""
    ours, theirs = forks.Pipe(duplex=False)
    process = forks.Process(target=run, args=(str(package), mechanism, check, environment, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(SECONDS), f"{check} took more than {SECONDS} s"
        return ours.recv()
    finally:
        process.kill()
        process.join()


def run(package: str, mechanism: str, check: str, environment: dict[str, str], told: Connection) -> None:
    os.environ.update(environment)
    sys.path.insert(0, package)
    import torch

    import subquad
    from subquad.registry import find
    from subquad.testing import certificate, contract

    assert str(subquad.__file__).startswith(package), subquad.__file__
    torch.set_num_threads(1)
    cls = find(mechanism)
    (chosen,) = (found for found in contract(cls) if found.__name__ == f"check_{check}")
    outcome = certificate.outcome(chosen, cls)
    told.send((outcome.passed, outcome.reason))
