"""What runs a spec: processes of this machine, a Ray cluster, or whatever another package registers.

    [project.entry-points."subquad.executors"]
    mine = "my_package:MyExecutor"

An executor is a subclass of `Executor`. It may hand a spec to wherever `run_here` can be called: that makes
the record. What its constructor takes besides `slots` and `timeout` are options, "mine:option=value".
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TypeGuard

from subquad.executors.events import Event, Note, Progress, Tell
from subquad.executors.executor import Executor, Spec
from subquad.executors.local import Local
from subquad.executors.outcome import run_here
from subquad.executors.ray import Ray
from subquad.notation import Option, read, read_options
from subquad.plugins import collect, look_up

__all__ = [
    "Event",
    "Executor",
    "ExecutorRequest",
    "Local",
    "Note",
    "Progress",
    "Ray",
    "Spec",
    "Tell",
    "catalog",
    "find",
    "run_here",
]

GIVEN = ("slots", "timeout")  # by those who make an executor


@dataclass(frozen=True)
class ExecutorRequest:
    """An executor with its options, as users ask for it."""

    cls: type[Executor]
    options: Mapping[str, Option]

    def __call__(self, *, slots: int, timeout: float) -> Executor:
        """Make it. Raises `ValueError` where it cannot be had."""
        return self.cls(slots=slots, timeout=timeout, **self.options)


@cache
def catalog() -> Mapping[str, type[Executor]]:
    """Every known executor by name. A plug-in that fails to load warns, and the rest works."""
    return collect("executor", (Local, Ray), accepts=is_executor, name=lambda cls: cls.name)


def is_executor(thing: object) -> TypeGuard[type[Executor]]:
    return isinstance(thing, type) and issubclass(thing, Executor)


def find(text: str) -> ExecutorRequest:
    """The executor that "NAME:option=value,…" asks for.

    Raises `ValueError` for an unknown name or option, and where what it needs is not installed.
    """
    name, pairs = read(text)
    cls = look_up("executor", name, catalog())
    parameters = inspect.signature(cls).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.name not in GIVEN}
    options = read_options(cls, name, text, pairs, defaults)
    if cls.package and find_spec(cls.package) is None:
        raise ValueError(
            f"the executor {name!r} needs {cls.package}, which is not installed: "
            f"pip install 'subquad[{name}]'"
        )
    return ExecutorRequest(cls, options)
