"""Texts as documents in three splits: from a file, a folder of files, or a Parquet table.

- A folder: each file in it and below is a document, hidden ones apart.
- A table: each row of the column `text` is one. A column `split`, if there is one, says which it is for:
  "train", "validation" ("valid") or "test".
- One file is one text: its first 90 % are for training, the next 5 % for validation, the last 5 % for test.

A document is its bytes, in whatever encoding they are. Where nobody has said which split they are for, a hash
of their content does, on every machine the same: a twentieth, those that come first, are for validation, as
many that come next for test. Empty ones are left out, and of several with the same content one is kept.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int, UInt8

from subquad.fields import SPLITS, Split
from subquad.tasks.errors import DataError
from subquad.tasks.published import in_order, local_path, why_missing
from subquad.tasks.source import readable, scan_parquet

GUTENBERG = "gutenberg/books.parquet"
HELD_OUT = 20  # one in so many documents is for validation, and one for test
SHARE = 32_768  # bytes that each document has at least, where only so many bytes of a split are wanted
NAMES: Mapping[str, Split] = {
    "train": "train",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
PRECEDENCE: tuple[Split, ...] = ("test", "validation", "train")  # where a text of several splits stays


@dataclass(frozen=True)
class Documents:
    """Texts one after the other."""

    symbols: UInt8[np.ndarray, " n"]
    stop: Int[np.ndarray, " d"]  # where a text ends and the next begins

    def __len__(self) -> int:
        return len(self.stop)

    @property
    def start(self) -> Int[np.ndarray, " d"]:
        return np.concatenate([[0], self.stop[:-1]]).astype(np.int64)

    @property
    def texts(self) -> list[bytes]:
        return [self.symbols[start:stop].tobytes() for start, stop in zip(self.start, self.stop, strict=True)]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> "Documents":
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        return cls(np.frombuffer(b"".join(texts), np.uint8), lengths.cumsum())


class Corpus(NamedTuple):
    """What was read, and how it was divided."""

    splits: Mapping[Split, Sequence[bytes]]
    name: str
    divided: str
    left_out: Mapping[str, int]  # documents, by reason


def read_corpus(path: str | None) -> Corpus:
    """The documents of a file or folder; of None the books below SUBQUAD_DATA.

    Raises `DataError` where there are none, or too few of them for three splits.
    """
    if path is None:
        return read_table(gutenberg())._replace(name="Project Gutenberg books from SUBQUAD_DATA")
    place = Path(path)
    if place.is_dir():
        return divided(read_folder(place), place.name)
    if not place.is_file():
        raise DataError(f"{path}: no such file or folder: give a text, a folder of texts, or a Parquet table")
    return read_table(place) if place.suffix.lower() == ".parquet" else cut_in_three(place)


def gutenberg() -> Path:
    if (path := local_path(GUTENBERG)) is None:
        raise DataError(
            f"the task 'language': {why_missing(GUTENBERG)}: name a folder with {GUTENBERG}, or take texts "
            "of your own, a file, a folder or a Parquet table: language:path=NAME"
        )
    return path


def read_folder(folder: Path) -> list[bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    texts = []
    for file in files:
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):
            with readable(str(file)):
                texts.append(file.read_bytes())
    return texts


def read_table(path: Path) -> Corpus:
    name = str(path)
    with readable(name):
        rows = scan_parquet(path)
        columns = rows.collect_schema()
        kind = columns.get("text")
        if kind not in (pl.String, pl.Binary):
            state = f"of type {kind}" if kind else "not there"
            raise DataError(f"{name}: column 'text': should hold texts, and is {state}")
        table = rows.select(pl.col(column) for column in ("text", "split") if column in columns).collect()
    texts = [text.encode() if isinstance(text, str) else text or b"" for text in table["text"]]
    if "split" not in table.columns:
        return divided(texts, path.name)
    named = table["split"].cast(pl.String)
    if strange := set(named.unique()) - NAMES.keys():
        listed = ", ".join(map(repr, NAMES))
        raise DataError(f"{name}: column 'split': should be one of {listed}, not {strange.pop()!r}")
    splits: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
    for split, text in zip(named, texts, strict=True):
        splits[NAMES[split]].append(text)
    seen: set[bytes] = {b""}
    kept = {split: unseen(splits[split], seen) for split in PRECEDENCE}
    return corpus(kept, texts, path.name, "as the table says")


def divided(texts: Sequence[bytes], name: str) -> Corpus:
    """Documents in three splits, by their content."""
    kept = unseen(texts, {b""})
    held_out = max(1, round(len(kept) / HELD_OUT))
    parts = {
        "validation": kept[:held_out],
        "test": kept[held_out : 2 * held_out],
        "train": kept[2 * held_out :],
    }
    return corpus(parts, texts, name, "by a hash of each document's content")


def unseen(texts: Sequence[bytes], seen: set[bytes]) -> list[bytes]:
    """The texts that are not among those seen, each once, in the order of `in_order`; they are seen then."""
    kept = []
    for place in in_order(texts):
        if texts[place] not in seen:
            seen.add(texts[place])
            kept.append(texts[place])
    return kept


def cut_in_three(path: Path) -> Corpus:
    """One text: its first 90 %, the next 5 % and the rest, each a document."""
    with readable(str(path)):
        whole = path.read_bytes()
    held_out = len(whole) // HELD_OUT
    first, second = len(whole) - 2 * held_out, len(whole) - held_out
    parts = {"train": whole[:first], "validation": whole[first:second], "test": whole[second:]}
    kept = {split: [part] if part else [] for split, part in parts.items()}
    return corpus(
        kept, list(parts.values()), path.name, "one text: its first 90 %, the next 5 % and the last 5 %"
    )


def corpus(splits: Mapping[str, Sequence[bytes]], texts: Sequence[bytes], name: str, how: str) -> Corpus:
    """Raises `DataError` where a split would be empty."""
    kept = sum(map(len, splits.values()))
    empty = sum(not text for text in texts)
    parts: dict[Split, Sequence[bytes]] = {split: splits[split] for split in SPLITS}
    for split, part in parts.items():
        if not part:
            raise DataError(
                f"{name}: no document is left for {split}, of {len(texts):,} ({empty:,} of them empty): "
                "give at least three that differ, or one file, which is cut in three"
            )
    return Corpus(parts, name, how, {"empty": empty, "repeated": len(texts) - kept - empty})


def beginnings(texts: Sequence[bytes], limit: int | None) -> list[bytes]:
    """At most `limit` bytes (None: all): the beginnings, equally long, of as many texts as have `SHARE` bytes
    each then, or are whole. The first ones are taken.
    """
    if limit is None:
        return list(texts)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    count = max(1, int(np.searchsorted(np.minimum(lengths, SHARE).cumsum(), limit, side="right")))
    lengths = lengths[:count]
    cut = bisect_right(range(limit + 1), limit, key=lambda most: int(np.minimum(lengths, most).sum())) - 1
    return [text[:cut] for text in texts[:count]]
