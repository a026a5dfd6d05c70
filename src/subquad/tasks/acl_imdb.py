"""The reviews of IMDb as their authors publish them: the folder aclImdb, a file for each.

Maas et al. 2011, "Learning Word Vectors for Sentiment Analysis": aclImdb_v1.tar.gz of
https://ai.stanford.edu/~amaas/data/sentiment/. A review is (train|test)/(pos|neg)/NUMBER_RATING.txt, and line
NUMBER, from 0 on, of (train|test)/urls_(pos|neg).txt is the address of its film, which has the film's number.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from subquad.tasks.errors import DataError
from subquad.tasks.source import readable

FOLDER = "aclImdb"
ARCHIVE = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
SPLITS = ("train", "test")
JUDGEMENTS = {"neg": 0, "pos": 1}
NAME = re.compile(r"(\d+)_\d+\.txt")
FILM = re.compile(r"/title/tt(\d+)")


def read_reviews(folder: Path) -> pl.DataFrame:
    """All labelled reviews: split ("train" or "test"), movie, label (1: favourable) and text.

    Raises `DataError`, which names the file, where something is missing or not as its authors publish it.
    """
    rows = [
        row for split in SPLITS for judgement in JUDGEMENTS for row in reviews_of(folder / split, judgement)
    ]
    return pl.DataFrame(rows, schema=["split", "movie", "label", "text"], orient="row")


def reviews_of(folder: Path, judgement: str) -> Iterator[tuple[str, int, int, str]]:
    """The reviews of a split that judge alike, in the order of their numbers."""
    films = films_in(folder / f"urls_{judgement}.txt")
    files = {
        int(named[1]): path
        for path in (folder / judgement).glob("*.txt")
        if (named := NAME.fullmatch(path.name))
    }
    if not files:
        raise DataError(f"{folder / judgement}: holds no review, NUMBER_RATING.txt: unpack {ARCHIVE} anew")
    for number, path in sorted(files.items()):
        if number >= len(films):
            raise DataError(
                f"{path}: urls_{judgement}.txt has {len(films):,} lines, and none for its film: "
                f"unpack {ARCHIVE} anew"
            )
        with readable(str(path)):
            text = path.read_text(encoding="utf-8")
        yield folder.name, films[number], JUDGEMENTS[judgement], text


def films_in(path: Path) -> list[int]:
    """The number of the film on each line of addresses."""
    with readable(str(path)):
        lines = path.read_text(encoding="utf-8").splitlines()
    films = []
    for place, line in enumerate(lines, start=1):
        if (film := FILM.search(line)) is None:
            raise DataError(f"{path}: line {place:,}: should be the address of a film, not {line!r}")
        films.append(int(film[1]))
    return films
