"""Pairs of texts: papers of which one cites the other or does not, reviews of one film or of two.

Negatives that are made here are the positives' own texts, paired otherwise: each text stands on either side
as often in negatives as in positives, so that neither text alone says anything of the answer.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int

from subquad.fields import SPLITS, Split
from subquad.tasks import acl_imdb
from subquad.tasks.errors import DataError
from subquad.tasks.published import HELD_OUT, data_folder, in_order, why_missing
from subquad.tasks.source import readable, scan_parquet
from subquad.tasks.splits import split_of

AAN: dict[Split, str] = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
AAN_COLUMNS = 5  # label, two ids, two texts
AAN_BYTES = 10_000  # of a text that the Arena keeps
AAN_LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}
PAPERS, CITATIONS = "aan_mini/papers.parquet", "aan_mini/citations.parquet"
FILMS = "imdb/imdb_labelled.parquet"

Sides = tuple[int, int]  # places of two texts


@dataclass(frozen=True)
class Pairs:
    """Those of a split, in an order by hash."""

    side: Int[np.ndarray, "e 2"]  # places of their texts
    answer: Int[np.ndarray, " e"]
    group: Int[np.ndarray, " e"]  # what pairs that depend on one another share

    def first(self, size: int) -> "Pairs":
        return Pairs(self.side[:size], self.answer[:size], self.group[:size])


class Corpus(NamedTuple):
    """Texts, and pairs of them."""

    texts: list[str]
    splits: Mapping[Split, Pairs]
    about: Mapping[str, Any]


def aan(cut: int) -> Corpus:
    """The Arena's pairs in its own splits, of its archive.

    A pair whose texts, as they are cut, stand in a later split as well, or before in the same one, is left
    out, whichever side comes first; and one with an empty text.
    """
    places: dict[str, int] = {}
    read = {split: read_aan(path, places) for split, path in aan_files().items()}
    marks = hashed(places)
    known: dict[bytes, int] = {}
    alike = [known.setdefault(text.encode()[:cut], len(known)) for text in places]
    splits: dict[Split, Pairs] = {}
    left_out = {"also in a later split": 0, "repeated": 0, "with an empty text": 0}
    later: set[frozenset[int]] = set()
    for split in reversed(SPLITS):
        own: set[frozenset[int]] = set()
        kept: list[tuple[int, int, int]] = []
        for first, second, answer in sorted(read[split], key=lambda pair: order(marks, pair[0], pair[1])):
            pair = frozenset((alike[first], alike[second]))
            if known.get(b"") in pair:
                left_out["with an empty text"] += 1
            elif pair in later:
                left_out["also in a later split"] += 1
            elif pair in own:
                left_out["repeated"] += 1
            else:
                own.add(pair)
                kept.append((first, second, answer))
        later |= own
        columns = np.array(kept, np.int64).reshape(-1, 3)
        splits[split] = Pairs(side=columns[:, :2], answer=columns[:, 2], group=columns[:, 0])
    about = {"question": "does one paper cite the other?", "data": "AAN, of the Long Range Arena's archive"}
    return Corpus(list(places), splits, {**about, "pairs left out": left_out})


def aan_files() -> dict[Split, Path]:
    """The archive's, wherever below SUBQUAD_DATA it was unpacked."""
    root = root_of(AAN["train"])
    folders = sorted(path.parent for path in root.rglob(AAN["train"]))
    if not folders:
        raise DataError(
            f"the task 'matching': no folder below {str(root)!r} (SUBQUAD_DATA) has {AAN['train']}"
        )
    if len(folders) > 1:
        raise DataError(f"several folders have {AAN['train']}: keep one of {', '.join(map(str, folders))}")
    return {split: folders[0] / name for split, name in AAN.items()}


def read_aan(path: Path, places: dict[str, int]) -> list[tuple[int, int, int]]:
    """Of each line the places of its texts in `places`, to which new ones are added, and the answer."""
    pairs = []
    with readable(str(path)), path.open("rb") as lines:
        for row, line in enumerate(lines, 1):
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) != AAN_COLUMNS:
                raise DataError(f"{path}: row {row}: should have {AAN_COLUMNS} columns, not {len(columns)}")
            label, _, _, *sides = columns
            if label not in AAN_LABELS:
                shown = label.decode(errors="replace")
                raise DataError(f"{path}: row {row}: should begin with 0.0 or 1.0, not {shown!r}")
            texts = (side[:AAN_BYTES].decode(errors="ignore") for side in sides)
            first, second = (places.setdefault(text, len(places)) for text in texts)
            pairs.append((first, second, AAN_LABELS[label]))
    return pairs


def aan_mini(cut: int) -> Corpus:
    """Papers of the ACL Anthology, and the citations among them.

    A citation is of the split to which the cited paper belongs, by its id; one by a paper that is itself
    cited in another split is left out. So a cited paper stands in one split only. Citing ones may stand in
    several: nearly all papers hang together by citations.
    """
    papers = table(PAPERS, "paper_id", "text")
    texts = papers["text"].to_list()
    marks = hashed(texts)
    places = {paper: place for place, paper in enumerate(papers["paper_id"].to_list())}
    every = table(CITATIONS, "citing", "cited").rows()
    if unknown := sorted({paper for link in every for paper in link} - places.keys()):
        raise DataError(f"{CITATIONS}: {len(unknown):,} papers are not in {PAPERS}, such as {unknown[0]!r}")
    whole = set(distinct(sorted(range(len(texts)), key=marks.__getitem__), texts, cut))
    links = [link for link in every if all(places[paper] in whole for paper in link)]
    cited: dict[str, Split] = {paper: split_of(paper) for _, paper in links}
    related = {frozenset((places[a], places[b])) for a, b in links}
    positives: dict[Split, list[Sides]] = {split: [] for split in SPLITS}
    for citing, paper in links:
        if cited.get(citing, cited[paper]) == cited[paper]:
            positives[cited[paper]].append((places[citing], places[paper]))
    splits: dict[Split, Pairs] = {
        split: with_negatives(
            positives[split],
            marks=marks,
            kind=[0] * len(texts),
            group=range(len(texts)),
            related=lambda first, second: frozenset((first, second)) in related,
        )
        for split in SPLITS
    }
    left_out = {
        "of a paper that reads like another": len(every) - len(links),
        "by one that is cited in another split": len(links) - sum(map(len, positives.values())),
    }
    about = {"question": "does one paper cite the other?", "data": "AAN-mini from SUBQUAD_DATA"}
    return Corpus(texts, splits, {**about, "citations left out": left_out})


def films(cut: int) -> Corpus:
    """Reviews of IMDb, of one film or of two.

    Test has the films that IMDb keeps for it, and validation a tenth of the others, by hash. The reviews of
    a film stand in a ring, and each makes a pair with the next. In a negative the second is one of another
    film that judges it alike, so that equal judgements are as frequent as in positives.
    A review that reads, as it is cut, like one of test or like another is left out.
    """
    rows = film_reviews().cast({"split": pl.String, "movie": pl.Int64})
    film, label, texts = (rows[column].to_list() for column in ("movie", "label", "text"))
    marks = hashed(texts)
    tested = set(rows.filter(pl.col("split") == "test")["movie"])
    others = sorted(set(film) - tested)
    held_out = in_order([str(each).encode() for each in others])[: len(others) // HELD_OUT]
    split_of_film: dict[int, Split] = dict.fromkeys(others, "train")
    split_of_film |= dict.fromkeys(tested, "test") | {others[place]: "validation" for place in held_out}
    published = rows["split"].to_list()
    apart = [place for place in range(len(rows)) if published[place] == "test" or film[place] not in tested]
    kept = distinct(sorted(apart, key=lambda place: (published[place] != "test", marks[place])), texts, cut)
    left_out = {"of a film in test": len(rows) - len(apart), "repeated": len(apart) - len(kept)}
    of_film: dict[int, list[int]] = defaultdict(list)
    for place in kept:
        of_film[film[place]].append(place)
    positives: dict[Split, list[Sides]] = {split: [] for split in SPLITS}
    for each, reviews in of_film.items():
        positives[split_of_film[each]] += ring(reviews)
    splits: dict[Split, Pairs] = {
        split: with_negatives(
            positives[split],
            marks=marks,
            kind=label,
            group=film,
            related=lambda first, second: film[first] == film[second],
        )
        for split in SPLITS
    }
    about = {"question": "are both reviews of one film?", "data": "IMDb from SUBQUAD_DATA"}
    return Corpus(texts, splits, {**about, "reviews left out": left_out})


def film_reviews() -> pl.DataFrame:
    """IMDb's labelled reviews with their films: from a table, or from the folder that its authors publish."""
    folder = root_of(FILMS) / acl_imdb.FOLDER
    if folder.is_dir() and not (folder.parent / FILMS).is_file():
        return acl_imdb.read_reviews(folder)
    remedy = f", nor the folder {acl_imdb.FOLDER} to which {acl_imdb.ARCHIVE} unpacks"
    return table(FILMS, "split", "movie", "label", "text", remedy=remedy)


SOURCES: dict[str, Callable[[int], Corpus]] = {"aan": aan, "aan_mini": aan_mini, "films": films}


def distinct(places: Iterable[int], texts: Sequence[str], cut: int) -> list[int]:
    """Those whose text, as it is cut, is not that of one before."""
    first: dict[bytes, int] = {}
    for place in places:
        first.setdefault(texts[place].encode()[:cut], place)
    return list(first.values())


def ring(places: Sequence[int]) -> list[Sides]:
    """Each with the next, the last with the first; no pair twice."""
    pairs = list(zip(places, [*places[1:], *places[:1]], strict=True))
    return pairs if len(places) > 2 else pairs[: len(places) - 1]


def with_negatives(
    positives: Sequence[Sides],
    *,
    marks: Sequence[bytes],
    kind: Sequence[int],
    group: Sequence[int],
    related: Callable[[int, int], bool],
) -> Pairs:
    """In an order by hash each positive, and then a negative with the same first text.

    Second texts are exchanged among positives whose second is of one `kind`. Each text has a mark, a kind
    and a group; a pair's group is the first's. Raises `DataError` where there are too few texts for that.
    """
    positives = sorted(positives, key=lambda pair: order(marks, *pair))
    second = [b for _, b in positives]
    by_kind: dict[int, list[int]] = defaultdict(list)
    for place, b in enumerate(second):
        by_kind[kind[b]].append(place)
    for places in by_kind.values():
        moved = [second[place] for place in places]
        for place, b in zip(places, [*moved[1:], *moved[:1]], strict=True):
            second[place] = b
    count = Counter(frozenset((a, b)) for (a, _), b in zip(positives, second, strict=True))

    def fits(place: int) -> bool:
        a, b = positives[place][0], second[place]
        return a != b and not related(a, b) and count[frozenset((a, b))] == 1

    def exchange(here: int, there: int) -> None:
        for change in (-1, 1):
            for place in (here, there):
                count[frozenset((positives[place][0], second[place]))] += change
            if change < 0:
                second[here], second[there] = second[there], second[here]

    for place in range(len(second)):
        others = iter(by_kind[kind[second[place]]])
        while not fits(place):
            if (other := next(others, None)) is None:
                raise DataError(
                    f"matching: {len(positives):,} pairs that match are too few to make as many that do not"
                )
            exchange(place, other)
            if not (fits(place) and fits(other)):
                exchange(place, other)
    side = np.array([*zip(positives, zip([a for a, _ in positives], second, strict=True), strict=True)])
    side = side.reshape(-1, 2).astype(np.int64)
    answer = np.tile([1, 0], len(positives)).astype(np.int64)
    return Pairs(side, answer, group=np.array(group, np.int64)[side[:, 0]])


def hashed(texts: Iterable[str]) -> list[bytes]:
    return [blake2b(text.encode(), digest_size=16, person=b"subquad order").digest() for text in texts]


def order(marks: Sequence[bytes], first: int, second: int) -> bytes:
    """By which a pair stands among others, whatever the order of a file."""
    return blake2b(marks[first] + marks[second], digest_size=16, person=b"subquad order").digest()


def table(file: str, *columns: str, remedy: str = "") -> pl.DataFrame:
    """Columns of a file below SUBQUAD_DATA. Raises `DataError` where they are not there, or have gaps."""
    path = root_of(file) / file
    if not path.is_file():
        raise DataError(f"the task 'matching': {why_missing(file)}{remedy}")
    with readable(str(path)):
        rows = scan_parquet(path).select(columns).collect()
    for column in rows:
        if missing := column.null_count():
            raise DataError(f"{path}: column {column.name!r}: missing in {missing:,} rows; leave them out")
        if column.name == "text" and (empty := int((column == "").sum())):
            raise DataError(f"{path}: column 'text': empty in {empty:,} rows; leave them out")
    return rows


def root_of(file: str) -> Path:
    """The folder below which a file is looked for. Raises `DataError` where none is named."""
    if (folder := data_folder()) is None:
        raise DataError(f"the task 'matching': {why_missing(file)}: let it name a folder with {file}")
    return folder
