"""Small data sets in the place of those that the task `matching` reads, below SUBQUAD_DATA."""

from pathlib import Path

import numpy as np
import polars as pl

from subquad.tasks.text_pairs import AAN, CITATIONS, FILMS, PAPERS

TOPICS = 12


def text(chance: np.random.Generator, topic: int) -> str:
    """Words of a topic among others; each text is another."""
    own = [f"topic{topic}é{word}" for word in chance.integers(0, 5, chance.integers(3, 8))]
    every = [*own, *(f"word{word}" for word in chance.integers(0, 99, chance.integers(3, 12)))]
    return f"{chance.integers(10**9)} " + " ".join(chance.permutation(every))


def write_films(folder: Path) -> Path:
    """Two to six reviews of each of 80 films, half of them for test; two reviews are the same."""
    chance = np.random.default_rng(0)
    movie = np.repeat(np.arange(80), chance.integers(2, 7, 80))
    rows = pl.DataFrame(
        {
            "split": np.where(movie % 2, "test", "train").tolist(),
            "movie": movie,
            "label": chance.integers(0, 2, len(movie)),
            "text": [text(chance, each) for each in movie.tolist()],
        }
    ).cast({"split": pl.Categorical, "movie": pl.Int32, "label": pl.Int8})
    rows = pl.concat([rows, rows.tail(1)]).sample(fraction=1, shuffle=True, seed=1)
    return stored(rows, folder / FILMS)


def write_archive(rows: pl.DataFrame, folder: Path) -> Path:
    """Reviews with their films as the authors of the data set publish them; the folder of all."""
    for (split, label), some in rows.sort("text").group_by("split", "label"):
        judgement = ("neg", "pos")[int(str(label))]
        here = folder / "aclImdb" / str(split)
        (here / judgement).mkdir(parents=True, exist_ok=True)
        films = [f"http://www.imdb.com/title/tt{movie:07}/usercomments" for movie in some["movie"]]
        (here / f"urls_{judgement}.txt").write_text("\n".join(films) + "\n")
        for number, text in enumerate(some["text"]):
            (here / judgement / f"{number}_{9 if label else 2}.txt").write_text(text, encoding="utf-8")
    return folder / "aclImdb"


def write_papers(folder: Path) -> None:
    """Papers that cite others of their topic."""
    chance = np.random.default_rng(0)
    ids = [f"P{place:03}" for place in range(120)]
    texts = [text(chance, place % TOPICS) for place in range(len(ids))]
    links = {
        (ids[place], ids[other])
        for place in range(TOPICS, len(ids))
        for other in chance.choice(np.arange(place % TOPICS, place, TOPICS), 2)
    }
    stored(pl.DataFrame({"paper_id": ids, "text": texts}), folder / PAPERS)
    stored(pl.DataFrame(sorted(links), schema=["citing", "cited"], orient="row"), folder / CITATIONS)


def stored(rows: pl.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(path)
    return path


Line = tuple[str, str, str]  # label and texts


def aan_lines(count: int, seed: int) -> list[Line]:
    chance = np.random.default_rng(seed)
    lines: list[Line] = []
    for place in range(count):
        topic = int(chance.integers(TOPICS))
        other = topic if place % 2 else (topic + 1) % TOPICS
        lines.append((f"{float(place % 2)}", text(chance, topic), text(chance, other)))
    return lines


def write_aan(folder: Path, **lines: list[Line]) -> Path:
    """As the archive of the Long Range Arena has them."""
    place = folder / "lra_release" / "tsv_data"
    place.mkdir(parents=True, exist_ok=True)
    for split, name in AAN.items():
        rows = [
            f"{label}\t{number}\t{number + 1}\t{first}\t{second}\n"
            for number, (label, first, second) in enumerate(lines[split])
        ]
        (place / name).write_text("".join(rows))
    return place
