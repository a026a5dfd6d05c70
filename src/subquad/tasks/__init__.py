"""Tasks: data with their splits, metric and baselines. This list loads neither torch nor Polars."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from subquad.tasks.errors import DataError, suggestion

if TYPE_CHECKING:
    from subquad.tasks.events import EventData

__all__ = ["TARGETS", "TASKS", "DataError", "load"]

TASKS = {
    "transactions": "grocery purchases of 2,469 households in 2017: churn or spend in the next 28 days",
    "own": "your own events and answers, CSV or Parquet, as --data schema.toml describes them",
}
TARGETS = {"transactions": ("churn", "spend"), "own": ()}  # the first is the default


def load(
    name: str, *, target: str | None = None, schema: Path | None = None, keep: int | None = None
) -> "EventData":
    """A task's data.

    `target` is one of the task's targets, by default the first; the task 'own' takes a `schema` file
    instead, and `keep`, how many of the last events of each entity are kept in memory (None: all).

    Raises `DataError` where the task is unknown or the data cannot be used as they are.
    """
    if name not in TASKS:
        raise DataError(f"unknown task {name!r}; {suggestion(name, TASKS)}")
    if name == "own":
        if schema is None:
            raise DataError(
                "the task 'own' needs to know your tables: give a schema file (--data schema.toml)"
            )
        if target is not None:
            raise DataError(
                f"target {target!r} cannot be asked of own data: the schema's [target] says what is"
            )
        return _room("own").load(schema, keep=keep)
    if schema is not None:
        raise DataError(f"the task {name!r} brings its own data: leave the schema {str(schema)!r} out")
    return _room(name).load(target or TARGETS[name][0])


def _room(name: str) -> ModuleType:
    """The module of a task, once what it reads with is installed."""
    try:
        return import_module(f"subquad.tasks.{name}")
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("subquad"):
            raise
        raise DataError(
            f'the task {name!r} needs {missing.name}, which is not installed: pip install "subquad[compare]"'
        ) from missing
