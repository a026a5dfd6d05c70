"""One check of one mechanism on a copy of the package, in a process of its own.

The process is forked from one that has loaded what takes long: torch and its compiler.
"""

import os
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

TIMEOUT_S = 300

forks = get_context("forkserver")
forks.set_forkserver_preload(["jaxtyping", "torch._inductor.compile_fx"])


def run_isolated(package: Path, mechanism: str, check: str, **environment: str) -> tuple[bool, str]:
    """Whether `check` passes on the package in the folder `package`, and the reason if not."""
    receiver, sender = forks.Pipe(duplex=False)
    process = forks.Process(target=run, args=(str(package), mechanism, check, environment, sender))
    process.start()
    sender.close()
    try:
        assert receiver.poll(TIMEOUT_S), f"{check} took more than {TIMEOUT_S} s"
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def run(package: str, mechanism: str, check: str, environment: dict[str, str], results: Connection) -> None:
    os.environ.update(environment)
    sys.path.insert(0, package)
    import torch

    import subquad
    from subquad.nn.layers.named import find_named
    from subquad.testing import certificate

    assert str(subquad.__file__).startswith(package), subquad.__file__
    torch.set_num_threads(1)
    cls = find_named(mechanism)
    (function,) = (x for x in certificate.checks_of(cls) if x.__name__ == f"check_{check}")
    outcome = certificate.outcome(function, cls)
    results.send((outcome.passed, outcome.reason))
