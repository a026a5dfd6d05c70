"""Made-up tables for the task 'own', written with their schema into a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from subquad.tasks.custom.events import load_events
from subquad.tasks.custom.schema import read_schema
from subquad.tasks.events import EventData

SCHEMA = {
    "events": {
        "path": "events.csv",
        "entity": "account",
        "time": "date",
        "categorical": ["type"],
        "numeric": ["amount"],
    },
    "target": {"path": "owners.csv", "entity": "account", "column": "old", "kind": "binary"},
}


def events(*, accounts: int = 40, each: int = 12, seed: int = 0) -> pl.DataFrame:
    """Events of accounts a000, a001, …, in no order."""
    generator = np.random.default_rng(seed)
    count = accounts * each
    days = generator.integers(0, 300, count)
    return pl.DataFrame(
        {
            "account": [f"a{number % accounts:03}" for number in range(count)],
            "date": [f"2020-{1 + day // 28:02}-{1 + day % 28:02}" for day in days],
            "type": generator.choice(["food", "rent", "fun"], count).tolist(),
            "amount": generator.normal(0, 100, count).round(2),
        }
    )


def owners(*, accounts: int = 40) -> pl.DataFrame:
    """An answer for each account, 0 and 1 in turn."""
    names = [f"a{number:03}" for number in range(accounts)]
    return pl.DataFrame({"account": names, "old": [number % 2 for number in range(accounts)]})


def written(
    folder: Path,
    *,
    events: pl.DataFrame,
    owners: pl.DataFrame,
    schema: Mapping[str, Mapping[str, object]] = SCHEMA,
) -> Path:
    """The path of the schema file; each table is written in the format that its path in the schema says."""
    for table, name in ((events, schema["events"]["path"]), (owners, schema["target"]["path"])):
        path = folder / str(name)
        table.write_parquet(path) if path.suffix == ".parquet" else table.write_csv(path)
    path = folder / "schema.toml"
    path.write_text(toml(schema))
    return path


def load_own(schema: Path, **options: int) -> EventData:
    """The data of the schema's first target."""
    read = read_schema(schema)
    return load_events(read, next(iter(read.targets)), **options)


def changed(section: str, **keys: object) -> dict[str, dict[str, object]]:
    """The schema with some keys of a section set, or taken out where None."""
    schema = {name: dict(part) for name, part in SCHEMA.items()}
    for key, value in keys.items():
        if value is None:
            del schema[section][key]
        else:
            schema[section][key] = value
    return schema


def toml(schema: Mapping[str, Mapping[str, object]]) -> str:
    lines = []
    for section, keys in schema.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_value(value)}" for key, value in keys.items()]
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
