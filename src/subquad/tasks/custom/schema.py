"""The file by which users say what their tables hold and what is asked: read strictly.

    [events]
    path = "transactions.csv"      # CSV or Parquet, relative to this file
    entity = "account_id"
    time = "date"                  # ISO date, datetime, or a number
    categorical = ["type", "symbol"]
    numeric = ["amount", "balance"]

    [target]
    path = "owners.parquet"        # may be the same file
    entity = "account_id"
    column = "over_55"
    kind = "binary"                # "binary" | "multiclass" | "regression"
    metric = "auc"                 # auc | accuracy | macro_f1 | mae; each kind has a default

`categorical`, `numeric` and `metric` may be left out; nothing else may, and nothing else may stand there but,
in either section, what a CSV does not say itself:

    encoding = "cp1252"            # where there is no byte-order mark and it is not UTF-8
    decimal = ","                  # of 12,50; no points may stand in numbers then

Commas, semicolons, tabs and bars that separate fields, byte-order marks and line ends need no word.
"""

import tomllib
from collections import Counter
from dataclasses import asdict, dataclass
from os.path import realpath  # of a loop of links, too
from pathlib import Path
from typing import Any

from subquad.objectives import OBJECTIVES
from subquad.tasks.dialect import UTF_8
from subquad.tasks.errors import DataError, suggestion

_KEYS = {
    "events": ("path", "entity", "time", "categorical", "numeric", "encoding", "decimal"),
    "target": ("path", "entity", "column", "kind", "metric", "encoding", "decimal"),
}
_MAY_BE_LEFT_OUT = ("categorical", "numeric", "metric", "encoding", "decimal")
_LISTS = ("categorical", "numeric")


@dataclass(frozen=True, kw_only=True)
class EventsTable:
    path: Path
    entity: str
    time: str
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    encoding: str = UTF_8
    decimal: str = "."

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read."""
        return (self.entity, self.time, *self.categorical, *self.numeric)


@dataclass(frozen=True, kw_only=True)
class TargetTable:
    path: Path
    entity: str
    column: str
    kind: str
    metric: str
    encoding: str = UTF_8
    decimal: str = "."

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read."""
        return (self.entity, self.column)


@dataclass(frozen=True, kw_only=True)
class Schema:
    events: EventsTable
    target: TargetTable

    @property
    def definition(self) -> dict[str, Any]:
        """All that is asked of the files, without where they lie."""
        return {part: {**fields, "path": ""} for part, fields in asdict(self).items()}


def read_schema(path: Path) -> Schema:
    """The schema in a TOML file. Raises `DataError` where it says too little, too much, or what cannot be."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    for section in written:
        if section not in _KEYS:
            raise DataError(f"{path}: unknown section [{section}]; {suggestion(section, _KEYS)}")
    events, target = (_section(path, written, section) for section in _KEYS)
    schema = Schema(
        events=EventsTable(**events),
        target=TargetTable(**{"metric": _default_metric(target["kind"]), **target}),
    )
    _consistent(path, schema)
    return schema


def _default_metric(kind: str) -> str:
    return OBJECTIVES[kind].metrics[0] if kind in OBJECTIVES else ""


def _section(path: Path, written: dict[str, Any], section: str) -> dict[str, Any]:
    if not isinstance(entries := written.get(section), dict):
        raise DataError(f"{path}: there is no section [{section}]")
    for key, value in entries.items():
        if key not in _KEYS[section]:
            raise DataError(f"{path}: unknown key {key!r} in [{section}]; {suggestion(key, _KEYS[section])}")
        if key in _LISTS:
            if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
                raise DataError(f"{path}: [{section}] {key} must be a list of column names, not {value!r}")
            if twice := sorted(name for name, count in Counter(value).items() if count > 1):
                raise DataError(f"{path}: [{section}] {key} names {twice[0]!r} twice")
        elif not isinstance(value, str) or not value:
            raise DataError(f"{path}: [{section}] {key} must be a text, not {value!r}")
        elif key == "decimal" and value not in (".", ","):
            raise DataError(f"{path}: [{section}] decimal must be '.' or ',', not {value!r}")
    for key in _KEYS[section]:
        if key not in entries and key not in _MAY_BE_LEFT_OUT:
            raise DataError(f"{path}: [{section}] lacks the key {key!r}")
    lists = {key: tuple(entries[key]) for key in _LISTS if key in entries}
    return {**entries, **lists, "path": path.parent / entries["path"]}


def _consistent(path: Path, schema: Schema) -> None:
    events, target = schema.events, schema.target
    if target.kind not in OBJECTIVES:
        raise DataError(f"{path}: unknown kind {target.kind!r}; {suggestion(target.kind, OBJECTIVES)}")
    if target.metric not in OBJECTIVES[target.kind].metrics:
        known = {metric for objective in OBJECTIVES.values() for metric in objective.metrics}
        if target.metric not in known:
            raise DataError(f"{path}: unknown metric {target.metric!r}; {suggestion(target.metric, known)}")
        fitting = " or ".join(map(repr, OBJECTIVES[target.kind].metrics))
        raise DataError(f"{path}: metric {target.metric!r} does not fit kind {target.kind!r}: use {fitting}")
    if realpath(events.path) == realpath(target.path) and target.column in events.columns:
        raise DataError(f"{path}: the answer {target.column!r} is also an input: take it out of [events]")
