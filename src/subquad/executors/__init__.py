"""What runs a spec: processes of this machine, or whatever another package registers.

    [project.entry-points."subquad.executors"]
    mine = "my_package:MyExecutor"

An executor is a subclass of `Executor`. It may hand a spec to wherever `run_here` can be called: that makes
the record.
"""

from collections.abc import Mapping
from functools import cache
from typing import TypeGuard

from subquad.executors.events import Event, Note, Progress, Tell
from subquad.executors.executor import Executor, Spec
from subquad.executors.local import Local
from subquad.executors.outcome import run_here
from subquad.plugins import collect, look_up

__all__ = ["Event", "Executor", "Local", "Note", "Progress", "Spec", "Tell", "catalog", "find", "run_here"]


@cache
def catalog() -> Mapping[str, type[Executor]]:
    """Every known executor by name. A plug-in that fails to load warns, and the rest works."""
    return collect("executor", (Local,), accepts=is_executor, name=lambda cls: cls.name)


def is_executor(thing: object) -> TypeGuard[type[Executor]]:
    return isinstance(thing, type) and issubclass(thing, Executor)


def find(name: str) -> type[Executor]:
    """The executor called `name`, or `ValueError` with the nearest known."""
    return look_up("executor", name, catalog())
