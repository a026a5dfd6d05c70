"""The file by which users say what their data hold and what is asked of them: read strictly.

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
    cutoff = "asked_on"            # each row asks about the events before this moment; left out: about all
    split = "entity"               # "entity" | "time": cut-offs of validation later than training's, …

`kind` at the top of the file says what a row is: "events" (the default), "text", "pairs" or "tokens". Of the
last three inputs and answer stand in one row:

    kind = "text"                  kind = "pairs"                 kind = "tokens"

    [text]                         [pairs]                        [tokens]
    path = "reviews.csv"           path = "pairs.csv"             path = "visits.parquet"
    column = "review"              first = "question"             column = "pages"  # a list column
    tokens = "bytes"  # | "bpe"    second = "answer"              vocabulary = 4096 # or a list of tokens
    vocabulary = 4096 # of "bpe"   tokens, vocabulary as in text  cut = 1000
    cut = 1000        # tokens     cut = 1000                     entity = "visitor"
    entity = "author" # a split    entity = "topic"

    [target]
    column = "stars"               # and kind and metric; kind = "tokens": a list, a label for each token

With kind = "language" there are no rows: [language] has the path of a text file, of a folder of them, or of a
Parquet table with a column `text`. The text itself is what is asked, and there is no [target].

Several targets are sections [targets.NAME] in the place of [target]; NAME is what `--target` takes.

What has a default may be left out, and nothing else may stand there but what a CSV does not say itself:

    encoding = "cp1252"            # where there is no byte-order mark and it is not UTF-8
    decimal = ","                  # of 12,50; no points may stand in numbers then

Commas, semicolons, tabs and bars that separate fields, byte-order marks and line ends need no word.
"""

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from os.path import realpath  # of a loop of links, too
from pathlib import Path
from typing import Any

from subquad.objectives import OBJECTIVES, TokenClassification
from subquad.tasks.dialect import UTF_8
from subquad.tasks.errors import DataError, suggestion
from subquad.tasks.text import BYTES, TOKENS

VOCABULARY = 4096  # tokens
CUT = 1000  # tokens
_LISTS = ("categorical", "numeric")
_ONE_OF = {"decimal": (".", ","), "tokens": TOKENS, "split": ("entity", "time")}
_LATER = {"cutoff": None, "split": "entity"}  # keys that came later: data without them keep their name


@dataclass(frozen=True, kw_only=True)
class File:
    """A table: where it is, and what a CSV does not say itself."""

    path: Path
    encoding: str = UTF_8
    decimal: str = "."


@dataclass(frozen=True, kw_only=True)
class EventsTable(File):
    entity: str
    time: str
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read."""
        return (self.entity, self.time, *self.categorical, *self.numeric)


@dataclass(frozen=True, kw_only=True)
class Examples(File):
    """A table with an example in each row.

    `cut`: tokens of an example that are kept, its first.
    `entity`: the column whose values stay in one split; empty: rows with the same content do.
    """

    cut: int = CUT
    entity: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a model reads."""
        raise NotImplementedError

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read, but for the answer."""
        return (*self.inputs, *([self.entity] if self.entity else []))


@dataclass(frozen=True, kw_only=True)
class TextTable(Examples):
    column: str
    tokens: str = TOKENS[0]
    vocabulary: int = VOCABULARY  # of a byte-pair encoding

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.column,)


@dataclass(frozen=True, kw_only=True)
class PairsTable(Examples):
    first: str
    second: str
    tokens: str = TOKENS[0]
    vocabulary: int = VOCABULARY

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.first, self.second)


@dataclass(frozen=True, kw_only=True)
class TokensTable(Examples):
    column: str
    vocabulary: int | tuple[str, ...] = VOCABULARY  # the most frequent so many of training, or these

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.column,)


@dataclass(frozen=True, kw_only=True)
class PlainFiles:
    """Text to model: a file, a folder of files, or a Parquet table."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked, of examples that stand in the same rows."""

    column: str
    kind: str
    metric: str = ""  # the kind's default, once it is read


@dataclass(frozen=True, kw_only=True)
class TargetTable(Target, File):
    """What is asked of entities, in a table of its own."""

    entity: str
    cutoff: str | None = None
    split: str = "entity"

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read."""
        return (self.entity, self.column, *([self.cutoff] if self.cutoff else []))


TABLES: dict[str, type[EventsTable] | type[Examples] | type[PlainFiles]] = {
    "events": EventsTable,
    "text": TextTable,
    "pairs": PairsTable,
    "tokens": TokensTable,
    "language": PlainFiles,
}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """`targets`: by the names that users choose them by, the default first; none of plain files."""

    kind: str
    table: EventsTable | Examples | PlainFiles
    targets: Mapping[str, Target]

    def definition(self, target: str) -> dict[str, Any]:
        """All that is asked of the files, without where they lie."""
        asked = asdict(self.targets[target])
        for key, default in _LATER.items():
            if asked.get(key) == default:
                asked.pop(key, None)
        return {self.kind: {**asdict(self.table), "path": ""}, "target": {**asked, "path": ""}}


def read_schema(path: Path) -> Schema:
    """The schema in a TOML file. Raises `DataError` where it says too little, too much, or what cannot be."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        raise DataError(f"{path}: not TOML: it has too many levels") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    kind = _kind(path, written)
    table = _section(path, written, kind, TABLES[kind])
    asked = TargetTable if kind == "events" else Target
    if isinstance(table, PlainFiles):
        if given := written.keys() & {"target", "targets"}:
            raise DataError(
                f"{path}: [{min(given)}] has no place beside [{kind}], whose text is what is asked: "
                "take it out"
            )
        targets = {}
    elif "targets" not in written:
        target = _target(path, written, "target", asked, table)
        targets = {target.column: target}
    elif "target" in written:
        raise DataError(f"{path}: give one [target] or several [targets.NAME], not both")
    elif not isinstance(several := written["targets"], dict) or not several:
        raise DataError(f"{path}: [targets] names no target: give each a section, as [targets.churn]")
    else:
        named = {f"targets.{name}": part for name, part in several.items()}
        targets = {name: _target(path, named, f"targets.{name}", asked, table) for name in several}
    return Schema(kind=kind, table=table, targets=targets)


def _kind(path: Path, written: Mapping[str, Any]) -> str:
    """Which kind it is, once all that stands at the top of the file is seen to be of it."""
    kind = written.get("kind", "events")
    if not isinstance(kind, str) or kind not in TABLES:
        raise DataError(f"{path}: unknown kind {kind!r}; {suggestion(str(kind), TABLES)}")
    for name, part in written.items():
        if name in TABLES and name != kind:
            said = f"kind = {kind!r}" if "kind" in written else "no kind"
            raise DataError(
                f"{path}: there is a section [{name}] and {said}: write kind = {name!r} above all sections, "
                "or take the section out"
            )
        if name not in ("kind", kind, "target", "targets"):
            if isinstance(part, dict):
                known = (kind, "target", "targets")
                raise DataError(f"{path}: unknown section [{name}]; {suggestion(name, known)}")
            raise DataError(f"{path}: unknown key {name!r} above all sections; {suggestion(name, ['kind'])}")
    return kind


def _section(path: Path, written: Mapping[str, Any], section: str, cls: type[Any]) -> Any:
    if not isinstance(entries := written.get(section), dict):
        raise DataError(f"{path}: there is no section [{section}]")
    place = f"{path}: [{section}]"
    known = {each.name: each for each in fields(cls)}
    for key, value in entries.items():
        if key not in known:
            if key == "kind":
                raise DataError(f"{place} has the key 'kind': it stands above all sections")
            raise DataError(f"{path}: unknown key {key!r} in [{section}]; {suggestion(key, known)}")
        _require_value(place, key, value, integral=known[key].type is int, either=cls is TokensTable)
    for key, each in known.items():
        if key not in entries and each.default is MISSING:
            raise DataError(f"{place} lacks the key {key!r}")
    if "vocabulary" in entries and "tokens" in known and entries.get("tokens", TOKENS[0]) == TOKENS[0]:
        raise DataError(f"{place} vocabulary is that of tokens = 'bpe': there are {BYTES} bytes")
    lists = {key: tuple(value) for key, value in entries.items() if isinstance(value, list)}
    return cls(**{**entries, **lists, **({"path": path.parent / entries["path"]} if "path" in known else {})})


def _require_value(place: str, key: str, value: Any, *, integral: bool, either: bool) -> None:
    """Raise `DataError` where a key has not the value that it takes."""
    if key == "vocabulary" and either:
        if isinstance(value, list):
            return _require_names(place, key, value, "tokens")
        integral = True
    if integral:
        least = BYTES + 1 if key == "vocabulary" and not either else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            whole = f"a whole number of at least {least}" + (" or a list of tokens" if either else "")
            raise DataError(f"{place} {key} must be {whole}, not {value!r}")
    elif key in _LISTS:
        _require_names(place, key, value, "column names")
    elif not isinstance(value, str) or not value:
        raise DataError(f"{place} {key} must be a text, not {value!r}")
    elif value not in _ONE_OF.get(key, (value,)):
        raise DataError(f"{place} {key} must be {' or '.join(map(repr, _ONE_OF[key]))}, not {value!r}")


def _require_names(place: str, key: str, value: Any, what: str) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise DataError(f"{place} {key} must be a list of {what}, not {value!r}")
    if twice := sorted(name for name, count in Counter(value).items() if count > 1):
        raise DataError(f"{place} {key} names {twice[0]!r} twice")


def _target(path: Path, written: Mapping[str, Any], section: str, cls: type[Any], table: Any) -> Any:
    """A target whose kind and metric fit one another, and which is no input."""
    target = _section(path, written, section, cls)
    kinds = dict(OBJECTIVES)
    if not isinstance(table, TokensTable):
        del kinds[TokenClassification.kind]
    if target.kind not in kinds:
        raise DataError(f"{path}: unknown kind {target.kind!r}; {suggestion(target.kind, kinds)}")
    metrics = kinds[target.kind].metrics
    target = replace(target, metric=target.metric or metrics[0])
    if target.metric not in metrics:
        known = {metric for objective in kinds.values() for metric in objective.metrics}
        if target.metric not in known:
            raise DataError(f"{path}: unknown metric {target.metric!r}; {suggestion(target.metric, known)}")
        fitting = " or ".join(map(repr, metrics))
        raise DataError(f"{path}: metric {target.metric!r} does not fit kind {target.kind!r}: use {fitting}")
    if isinstance(target, TargetTable):
        if target.split == "time" and target.cutoff is None:
            raise DataError(f"{path}: [{section}] split = 'time' needs moments: name their column as cutoff")
        beside = realpath(table.path) == realpath(target.path)
        inputs = table.columns if beside else ()
    else:
        inputs = table.columns
    if target.column in inputs:
        name = next(kind for kind, each in TABLES.items() if isinstance(table, each))
        raise DataError(f"{path}: the answer {target.column!r} is also an input: take it out of [{name}]")
    return target
