"""Made-up texts and lists of tokens with their answers, and the schemas that describe them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tables import toml

from subquad import tasks
from subquad.tasks.sequences import SequenceData

WORDS = ("good", "bad", "film", "plot", "dull", "fine", "actor", "née", "ß")
TEXT: dict[str, dict[str, object]] = {
    "text": {"path": "rows.csv", "column": "review"},
    "target": {"column": "stars", "kind": "binary", "metric": "accuracy"},
}
TOKENS: dict[str, dict[str, object]] = {
    "tokens": {"path": "rows.parquet", "column": "pages"},
    "target": {"column": "bought", "kind": "binary", "metric": "accuracy"},
}
PAIRS: dict[str, dict[str, object]] = {
    "pairs": {"path": "rows.csv", "first": "question", "second": "answer"},
    "target": {"column": "helpful", "kind": "binary", "metric": "accuracy"},
}
LABELS = {**TOKENS, "target": {"column": "tags", "kind": "tokens"}}


def texts(*, count: int = 240) -> pl.DataFrame:
    """Texts in which a good word says much of the stars, and of how long they are all of the words."""
    chance = np.random.default_rng(0)
    stars = chance.integers(0, 2, count)
    said = np.where(chance.random(count) < 0.8, stars, 1 - stars)
    words = [chance.choice(WORDS[2:], chance.integers(3, 12)).tolist() for _ in range(count)]
    return pl.DataFrame(
        {
            "review": [" ".join([*row, WORDS[1 - good]]) for row, good in zip(words, said, strict=True)],
            "stars": stars,
            "words": [len(row) + 1.0 for row in words],
            "author": [f"w{place % 60}" for place in range(count)],
        }
    )


def pairs(*, count: int = 240) -> pl.DataFrame:
    """Questions with an answer each, which mostly shares words with its question where it helps."""
    chance = np.random.default_rng(0)
    names = [f"{first}{second}" for first in "bdfgklmn" for second in ("ama", "oro", "eni", "uxe", "ity")]
    questions = [chance.choice(names, 5, replace=False).tolist() for _ in range(count // 3)]
    rows = []
    for place in range(count):
        question = questions[place % len(questions)]
        helpful = int(chance.integers(0, 2))
        shared = question[: 2 if helpful != (chance.random() < 0.2) else 0]
        answer = [*shared, *chance.choice(names, 3).tolist()]
        rows.append((" ".join(question), " ".join(answer), helpful, place % 3))
    columns = ["question", "answer", "helpful", "grade"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def pages(*, count: int = 240) -> pl.DataFrame:
    """Lists of numbers of several lengths; whether a 3 is among them is mostly the answer, and each number's
    remainder by three mostly its tag.
    """
    chance = np.random.default_rng(0)
    lists = [chance.integers(0, 9, chance.integers(2, 15)).tolist() for _ in range(count)]
    return pl.DataFrame(
        {
            "pages": lists,
            "bought": [int((3 in row) != (chance.random() < 0.2)) for row in lists],
            "tags": [["abc"[(page + (chance.random() < 0.2)) % 3] for page in row] for row in lists],
            "visitor": [f"w{place % 60}" for place in range(count)],
        }
    )


def written(folder: Path, table: pl.DataFrame, schema: Mapping[str, Mapping[str, object]]) -> Path:
    """The path of the schema; the table is written in the format that its path there says."""
    kind = next(iter(schema))
    path = folder / str(schema[kind]["path"])
    table.write_parquet(path) if path.suffix == ".parquet" else table.write_csv(path)
    (folder / "schema.toml").write_text(f'kind = "{kind}"\n{toml(schema)}\n')
    return folder / "schema.toml"


def changed(schema: Mapping[str, Mapping[str, object]], section: str, **keys: object) -> dict[str, Any]:
    """The schema with other keys in a section; None takes one out."""
    part = {key: value for key, value in {**schema[section], **keys}.items() if value is not None}
    return {**schema, section: part}


def loaded(folder: Path, table: pl.DataFrame, schema: Mapping[str, Any], **options: Any) -> SequenceData:
    data = tasks.load("custom", schema=str(written(folder, table, schema)), **options)
    assert isinstance(data, SequenceData)
    return data
