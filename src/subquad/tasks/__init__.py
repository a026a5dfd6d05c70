"""Tasks by name: those that come with the package, and those that others register. This loads no torch.

A package adds one with an entry point; see docs/adding-a-task.md:

    [project.entry-points."subquad.tasks"]
    mine = "my_package:MyTask"
"""

import inspect
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subquad.plugins import collect, hint
from subquad.tasks.errors import DataError

if TYPE_CHECKING:
    from subquad.task import Dataset, Task
    from subquad.tasks.prepared import TellShare

__all__ = ["SIZE", "TARGET", "DataError", "build", "catalog", "find", "load", "options", "prepare", "sized"]

SIZE = "size"  # the option that stands for others
TARGET = "target"  # the option that is none of the data's: what is asked of them

BUILTIN = {  # where the classes are, loaded when one is asked for
    "transactions": "Transactions",
    "custom": "Custom",
    "listops": "ListOps",
    "text": "Text",
    "matching": "Matching",
    "image": "Image",
    "pathfinder": "Pathfinder",
    "recall": "Recall",
    "copying": "Copying",
    "needle": "Needle",
    "adding": "Adding",
    "language": "Language",
}


@cache
def catalog() -> "Mapping[str, type[Task]]":
    """Every known task by name. A plug-in that fails to load warns, and the rest works."""
    from subquad.task import Task

    classes = [_builtin(module, name) for module, name in BUILTIN.items()]
    return collect(
        "task",
        classes,
        accepts=lambda thing: isinstance(thing, type) and issubclass(thing, Task),
        name=lambda cls: cls.traits.name,
    )


def find(name: str) -> "type[Task]":
    """The task called `name`, or `DataError` with the nearest known."""
    if name not in catalog():
        raise DataError(f"unknown task {name!r}{hint(name, catalog())}")
    return catalog()[name]


def options(cls: "type[Task]") -> dict[str, Any]:
    """The options a task takes, with their defaults."""
    return {parameter.name: parameter.default for parameter in inspect.signature(cls).parameters.values()}


def sized(cls: "type[Task]", size: str | None = None) -> "Mapping[str, Any]":
    """The options that one of a task's sizes stands for, none for None.

    Raises `DataError` where there is no such size.
    """
    sizes = cls.traits.sizes
    if size is not None and size not in sizes:
        known = hint(size, sizes) if sizes else "; it has one only"
        raise DataError(f"the task {cls.traits.name!r} has no size {size!r}{known}")
    return sizes[size] if size is not None else {}


def build(name: str, **chosen: Any) -> "Task":
    """A task with its options, or with those of `size`, if that is given, where they are not.

    Raises `DataError` for an unknown task, size or option, and for a value that it cannot take.
    """
    cls = find(name)
    chosen = {**sized(cls, chosen.pop(SIZE, None)), **chosen}
    for option in chosen:
        if option not in options(cls):
            raise DataError(f"the task {name!r} has no option {option!r}{hint(option, options(cls))}")
    return cls(**chosen)


def load(name: str, *, target: str | None = None, length: int | None = None, **chosen: Any) -> "Dataset":
    """A task's data.

    name: as `catalog` has it.
    target: one of the task's targets; None: its first.
    length: tokens of a sequence that will be read, so that more need not be kept; None: all.
    chosen: the task's own options, such as `schema` of the task 'custom', or a size of its: `size="quick"`.

    What `prepare` has kept is not made again. Raises `DataError` where the task is unknown or the data cannot
    be used as they are.
    """
    from subquad.tasks import prepared
    from subquad.tasks.preparable import Preparable

    task = build(name, **chosen)
    target = known_target(task, target)
    if isinstance(task, Preparable):
        return prepared.read_or_make(task, every_option(type(task), chosen), target=target, length=length)
    return task.load(target=target, length=length)


def prepare(name: str, *, tell: "TellShare" = lambda share: None, **chosen: Any) -> Path | None:
    """Make a task's data ahead, and keep them for all processes in the folder that SUBQUAD_CACHE names.

    name, chosen: as `load` takes them.
    tell: is called with the share that is made, from 0 to 1, and with None while another process makes it.

    A process that was interrupted is gone on from. Returns the folder of the data; None where the task reads
    its files every time. Raises `DataError` where the task is unknown or the data cannot be had, and
    `OSError` where they cannot be kept.
    """
    from subquad.tasks import prepared
    from subquad.tasks.preparable import Preparable

    task = build(name, **chosen)
    if not isinstance(task, Preparable):
        return None
    options = every_option(type(task), chosen)
    entry = prepared.Entry.of(task, options)
    entry.prepare(task, options, tell)
    return entry.path


def every_option(cls: "type[Task]", chosen: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a task, where those of `size` and others are chosen."""
    named = {option: value for option, value in chosen.items() if option != SIZE}
    return {**options(cls), **sized(cls, chosen.get(SIZE)), **named}


def known_target(task: "Task", target: str | None) -> str | None:
    """The target, or the first one. Raises `DataError` for one that the task has not."""
    targets = task.traits.targets
    if targets and target is not None and target not in targets:
        raise DataError(f"{task.traits.name!r} has no target {target!r}{hint(target, targets)}")
    return target or next(iter(targets), None)


def _builtin(module: str, name: str) -> "type[Task]":
    """The class of a task, once what it reads with is installed."""
    try:
        return getattr(import_module(f"subquad.tasks.{module}"), name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("subquad"):
            raise
        raise DataError(
            f"the task {module!r} needs {missing.name}, which is not installed: "
            'pip install "subquad[compare]"'
        ) from missing
