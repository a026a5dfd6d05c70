"""Texts as a pretrained model reads them: batches of tokens, the same whenever a step asks for them."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from subquad.config import TextsConfig

READERS: Mapping[str, Callable[[Path], pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".csv": pl.read_csv,
    ".jsonl": pl.read_ndjson,
}
LONGEST_TOKEN = 16  # characters that a token has at most, on the mean of many
MOST_HELD_OUT = 0.2  # of all texts


class Texts:
    """Batches of stretches of texts, `texts[0]`, `texts[1]`, … without end.

    Each row is a stretch of one text, at a place of chance where the text is longer than a row; texts take
    turns, in another order each time. A batch depends on its number and on the seed alone, so that training
    that was interrupted goes on with the very batches that it would have had.

    tokenizer: of transformers, or anything called like one.
    texts: at least one.
    tokens: of a row at most.
    batch: rows.
    seed: of orders and places.
    """

    def __init__(
        self, tokenizer: Any, texts: Sequence[str], *, tokens: int, batch: int, seed: int = 0
    ) -> None:
        if not texts:
            raise ValueError("there is no text to read")
        self.tokenizer, self.texts = tokenizer, texts
        self.tokens, self.batch, self.seed = tokens, batch, seed
        self.order = lru_cache(maxsize=2)(self._order)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.read(range(number * self.batch, (number + 1) * self.batch))

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What a model is called with, by name, for rows by their numbers in the endless succession."""
        return dict(
            self.tokenizer(
                [self.stretch(row) for row in rows],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.tokens,
            )
        )

    def first(self, count: int) -> Iterator[dict[str, Tensor]]:
        """So many rows, in batches."""
        for start in range(0, count, self.batch):
            yield self.read(range(start, min(start + self.batch, count)))

    def stretch(self, row: int) -> str:
        """As much of a text as a row can hold."""
        turn, place = divmod(row, len(self.texts))
        text = self.texts[self.order(turn)[place]]
        room = LONGEST_TOKEN * self.tokens
        if len(text) <= room:
            return text
        start = random.Random(f"{self.seed} {row}").randrange(len(text) - room + 1)
        return text[start : start + room]

    def _order(self, turn: int) -> list[int]:
        order = list(range(len(self.texts)))
        random.Random(f"{self.seed} order {turn}").shuffle(order)
        return order


def read_texts(
    path: Path, tokenizer: Any, config: TextsConfig | None = None
) -> tuple[Texts, list[dict[str, Tensor]]]:
    """Texts to learn from, and batches of others that are held out.

    Held out are a fifth of the texts at most, and each of them once where that is enough.

    Raises `ValueError` for what is no table of at least two texts.

    path: of a table: Parquet, CSV or JSON lines.
    tokenizer: of transformers, or anything called like one.
    config: which column, how much of it, and in which order.
    """
    config = config or TextsConfig()
    texts = column_of(path, config.column)
    random.Random(f"{config.seed} split").shuffle(texts)
    apart = max(1, min(config.held_out, int(MOST_HELD_OUT * len(texts))))
    if getattr(tokenizer, "pad_token", "") is None:
        tokenizer.pad_token = tokenizer.eos_token
    measured, learnt = (
        Texts(tokenizer, part, tokens=config.tokens, batch=config.batch, seed=config.seed)
        for part in (texts[:apart], texts[apart:])
    )
    return learnt, list(measured.first(config.held_out))


def column_of(path: Path, column: str) -> list[str]:
    """The texts of a table that hold anything."""
    if (reader := READERS.get(path.suffix)) is None:
        raise ValueError(f"{str(path)!r} is no table of texts: its name ends in {' or '.join(READERS)}")
    try:
        table = reader(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{str(path)!r} cannot be read as a table: {reason}") from error
    if column not in table.columns or table.schema[column] != pl.String:
        known = ", ".join(name for name, kind in table.schema.items() if kind == pl.String) or "none"
        raise ValueError(f"{str(path)!r} has no column of texts {column!r}: columns of texts are {known}")
    texts = [text for text in table[column] if text and text.strip()]
    if len(texts) < 2:
        raise ValueError(f"{str(path)!r} has fewer than two texts, one to learn from and one held out")
    return texts
