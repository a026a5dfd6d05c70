"""Pairs of texts are what their source says, balanced, apart between splits, and read as in training."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from experiments_sample import QUICK, changed
from pairs_of_texts import aan_lines, stored, write_aan, write_archive, write_films, write_papers
from published import shared

import subquad
from subquad import tasks
from subquad.experiments.fit import fit
from subquad.experiments.predictor import export
from subquad.fields import SPLITS, Pair, Split, Tokens
from subquad.tasks import DataError
from subquad.tasks.matching import Matching, PairedTexts, threshold
from subquad.tasks.sequences import SequenceData
from subquad.tasks.text_pairs import AAN, CITATIONS, FILMS, PAPERS, ring, with_negatives
from subquad.testing.task import Case, contract

BPE: dict[str, Any] = {"tokens": "bpe", "vocabulary": 300}
LINES = {"train": aan_lines(60, 0), "validation": aan_lines(20, 1), "test": aan_lines(20, 2)}
FINGERPRINTS = {
    ("films", "bytes"): "5afcf1ee98de17fc1e6df2f86256f46e2dfdf48ff3d2f1ede7c6c91f7562e23f",
    ("films", "bpe"): "3a3e118176153edada15d84c3b3cfacc229ef7700fc8a720cf002191d4d09139",
    ("aan_mini", "bytes"): "0fda0898dcbcf70df41a6eb2f0494e46fa3e50fbceec8103b6528bea7f14da5e",
    ("aan_mini", "bpe"): "256422466ae51670a9eab33ae317f852123ebaf15f2210269dbf78035240d409",
}

Texts = tuple[str, str]


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All three sources, below SUBQUAD_DATA."""
    write_films(tmp_path)
    write_papers(tmp_path)
    write_aan(tmp_path, **LINES)
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path))
    return tmp_path


def load(pairs: str, **options: Any) -> SequenceData:
    data = tasks.load("matching", pairs=pairs, **options)
    assert isinstance(data, SequenceData)
    return data


def examples(data: SequenceData, split: Split) -> list[tuple[Texts, int]]:
    """Pairs as they were, where nothing is cut, with their answers."""
    part = data.splits[split]
    assert part.pair is not None
    texts = [part.symbols[a:b].tobytes().decode() for a, b in zip(part.start, part.stop, strict=True)]
    return [((texts[a], texts[b]), int(yes)) for (a, b), yes in zip(part.pair, part.answer, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {"pairs": "films", "cut": 40},
        {"pairs": "films", "cut": 20, **BPE},
        {"pairs": "aan_mini"},
        {"pairs": "aan", "cut": 40},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
@pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
def test_contract(check, options: dict[str, Any], data_folder: Path):
    check(Case(Matching(**options), "match"))


@pytest.mark.parametrize("pairs", ["films", "aan_mini"])
def test_each_text_stands_on_either_side_of_as_many_negatives_as_positives(pairs: str, data_folder: Path):
    for split in SPLITS:
        every = examples(load(pairs), split)
        for side in range(2):
            yes, no = (Counter(texts[side] for texts, answer in every if answer == kind) for kind in (1, 0))
            assert yes == no


def test_films_match_where_both_reviews_are_of_one_and_no_film_is_in_two_splits(data_folder: Path):
    rows = pl.read_parquet(data_folder / FILMS)
    film = dict(zip(rows["text"], rows["movie"], strict=True))
    data = load("films")
    seen: dict[int, Split] = {}
    for split in SPLITS:
        for (first, second), answer in examples(data, split):
            assert (film[first] == film[second]) == answer
            for text in (first, second):
                assert seen.setdefault(film[text], split) == split
    assert {film for film, split in seen.items() if split == "test"} == set(range(1, 80, 2))
    assert data.summary["reviews left out"] == {"of a film in test": 0, "repeated": 1}
    assert data.summary["texts of test"]["also in training"] == 0


def test_reviews_of_two_films_judge_alike_as_often_as_those_of_one(data_folder: Path):
    rows = pl.read_parquet(data_folder / FILMS)
    label = dict(zip(rows["text"], rows["label"], strict=True))
    for split in SPLITS:
        every = examples(load("films"), split)
        yes, no = (
            sorted((label[first], label[second]) for (first, second), answer in every if answer == kind)
            for kind in (1, 0)
        )
        assert yes == no


def test_reviews_of_a_film_that_test_has_are_left_out_of_training(data_folder: Path):
    rows = pl.read_parquet(data_folder / FILMS)
    both = rows.with_columns(movie=pl.when(pl.col("movie") == 0).then(1).otherwise("movie").cast(pl.Int32))
    stored(both, data_folder / FILMS)
    left_out = load("films").summary["reviews left out"]["of a film in test"]
    assert left_out == rows.filter(pl.col("movie") == 0).height


def test_papers_match_where_one_cites_the_other_and_a_cited_one_is_in_one_split(data_folder: Path):
    papers, links = (pl.read_parquet(data_folder / file) for file in (PAPERS, CITATIONS))
    name = dict(zip(papers["text"], papers["paper_id"], strict=True))
    data = load("aan_mini")
    citations, cited = {*links.rows()}, set(links["cited"])
    seen: dict[str, Split] = {}
    matches = 0
    for split in SPLITS:
        for texts, answer in examples(data, split):
            pair = name[texts[0]], name[texts[1]]
            assert (pair in citations or pair[::-1] in citations) == answer
            matches += answer
            for paper in cited.intersection(pair):
                assert seen.setdefault(paper, split) == split
    left_out = data.summary["citations left out"]
    assert list(left_out.values()) == [0, len(links) - matches]
    trained = {text for texts, _ in examples(data, "train") for text in texts}
    tested = {text for texts, _ in examples(data, "test") for text in texts}
    assert data.summary["texts of test"] == {"all": len(tested), "also in training": len(tested & trained)}


def test_citations_of_a_paper_that_reads_like_another_are_left_out(data_folder: Path):
    papers, links = (pl.read_parquet(data_folder / file) for file in (PAPERS, CITATIONS))
    twin = pl.when(pl.col("paper_id") == "P030").then(pl.lit(papers["text"][31])).otherwise("text")
    stored(papers.with_columns(text=twin), data_folder / PAPERS)
    of_either = [sum(paper in link for link in links.rows()) for paper in ("P030", "P031")]
    left_out = load("aan_mini", cut=50).summary["citations left out"]
    assert left_out["of a paper that reads like another"] in of_either


def test_papers_of_the_arena_are_read_as_they_stand_there(data_folder: Path):
    train = [((first, second), int(float(label))) for label, first, second in LINES["train"]]
    odd = [("1.0", '"quoted at the start', "it's x" * 3_000), ("0.0", "plain", 'a "b" c')]
    write_aan(data_folder, **{**LINES, "test": odd})
    data = load("aan", cut=20_000)
    assert sorted(examples(data, "test")) == sorted(
        ((first, second[:10_000]), int(float(label))) for label, first, second in odd
    )
    assert sorted(examples(data, "train")) == sorted(train)


def test_pairs_of_the_arena_that_a_later_split_has_are_left_out_and_counted(data_folder: Path):
    label, first, second = LINES["test"][0]
    again = {
        "train": [
            *LINES["train"],
            LINES["train"][1],
            (label, second, first),
            LINES["validation"][3],
            ("1.0", "", "a"),
        ],
        "validation": [*LINES["validation"], (label, first, second + " and more")],
        "test": LINES["test"],
    }
    write_aan(data_folder, **again)
    data = load("aan", cut=min(len(first.encode()), len(second.encode())))
    assert data.summary["pairs left out"] == {
        "also in a later split": 3,
        "repeated": 1,
        "with an empty text": 1,
    }
    assert [len(data.truth(split)) for split in SPLITS] == [60, 20, 20]
    assert load("aan").summary["pairs left out"]["also in a later split"] == 2


@pytest.mark.parametrize("pairs", ["films", "aan_mini", "aan"])
def test_fewer_pairs_are_the_first_of_all_and_half_of_them_match(pairs: str, data_folder: Path):
    sizes = {"train": 10, "validation": 4, "test": 6}
    whole, part = load(pairs), load(pairs, **sizes)
    for split in SPLITS:
        assert examples(part, split) == examples(whole, split)[: sizes[split]]
    if pairs != "aan":
        assert part.truth("train").tolist() == [1, 0] * 5


@pytest.mark.parametrize(("pairs", "file"), [("films", FILMS), ("aan_mini", PAPERS), ("aan_mini", CITATIONS)])
def test_the_order_of_the_rows_does_not_matter(pairs: str, file: str, data_folder: Path):
    before = load(pairs)
    stored(pl.read_parquet(data_folder / file).reverse(), data_folder / file)
    after = load(pairs)
    for split in SPLITS:
        assert examples(after, split) == examples(before, split)
        assert after.group(split).tolist() == before.group(split).tolist()
    assert after.fingerprint == before.fingerprint


def test_the_fingerprint_covers_texts_pairs_and_answers(data_folder: Path):
    data = load("aan")
    part = data.splits["train"]
    assert part.pair is not None
    symbols, pair, answer = part.symbols.copy(), part.pair.copy(), part.answer.copy()
    symbols[5] += 1
    pair[3] = pair[3, ::-1]
    answer[3] = 1 - answer[3]
    others = [replace(part, symbols=symbols), replace(part, pair=pair), replace(part, answer=answer)]
    marks = {replace(data, splits={**data.splits, "train": other}).fingerprint for other in (part, *others)}
    assert len(marks) == 4
    assert data.fingerprint in marks


@pytest.mark.parametrize("options", [{}, BPE], ids=["bytes", "bpe"])
def test_new_pairs_are_read_as_those_of_training(options: dict[str, Any], data_folder: Path):
    pairs = [texts for texts, _ in examples(load("films"), "test")]
    data = load("films", cut=60, **options)
    encoding = PairedTexts(**json.loads(json.dumps(asdict(data.encoding))))
    batch = next(data.batches("test", size=3, length=60, seed=0, epoch=0, shuffle=False))
    names, (ids,), valid = encoding.batch([pairs[place] for place in batch.example], 60)
    assert ids.tolist() == batch.inputs[0].tolist()
    assert valid.tolist() == batch.valid.tolist()
    assert names.to_list() == [list(pairs[place]) for place in batch.example]


@pytest.mark.parametrize("attention", ["softmax", "linear", "local"])
def test_a_model_of_pairs_is_trained_saved_and_asked(attention: str, data_folder: Path, tmp_path: Path):
    data = load("films", cut=30, train=32, validation=8, test=8)
    spec = changed(
        QUICK,
        data={"task": "matching", "target": "match", "options": {"pairs": "films"}, "length": 30},
        mechanism={"attention": attention},
        training={"steps": 3, "batch": 4},
        validate=3,
    )
    fitted = fit(spec, data, checkpoint_path=tmp_path / "checkpoint", tell=lambda *_: None)
    assert len(fitted.result["examples"]["contribution"]) == 8
    assert fitted.result["curve"][-1]["examples"] == 12
    export(fitted.model, data, spec, tmp_path / "model")
    pairs = [("a first text", "another"), ("ß" * 40, "é")] * 40
    answers = subquad.load_model(tmp_path / "model").predict(pairs)
    assert answers.columns == ["pair", "class", "probability of no", "probability of yes"]
    assert answers["pair"].to_list() == [list(pair) for pair in pairs]
    assert answers[:2].equals(answers[2:4])


@pytest.mark.parametrize(
    "options",
    [{"pairs": "films"}, {"pairs": "aan_mini"}, {"pairs": "aan", "tokens": "bpe", "vocabulary": 600}],
)
def test_words_in_common_tell_much(options: dict[str, Any], data_folder: Path):
    data = load(**options)
    output = data.baseline("tf-idf cosine", length=data.longest, seed=0)
    assert (data.objective.choose(output) == data.truth("test")).mean() > 0.7


@pytest.mark.parametrize("seed", range(20))
def test_no_other_threshold_is_right_more_often(seed: int):
    chance = np.random.default_rng(seed)
    score, answer = chance.integers(0, 6, 9) / 5, chance.integers(0, 2, 9)
    right = [((score > bound) == answer).mean() for bound in (-1, *np.unique(score))]
    assert ((score > threshold(score, answer)) == answer).mean() == max(right)


def test_a_ring_has_each_pair_once():
    assert ring([5]) == []
    assert ring([5, 6]) == [(5, 6)]
    assert ring([5, 6, 7]) == [(5, 6), (6, 7), (7, 5)]


def test_negatives_that_cannot_be_made_are_said_in_one_line():
    texts = {"marks": [b"a", b"b"], "kind": [0, 0], "group": [0, 0]}
    with pytest.raises(DataError, match="1 pairs that match are too few to make as many that do not"):
        with_negatives([(0, 1)], **texts, related=lambda first, second: True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "aan2"}, "pairs must be one of 'aan', 'aan_mini', 'films', not 'aan2'"),
        ({"test": 0}, r"matching: train, validation and test must be at least 1, not \(150000, 20000, 0\)"),
        ({"cut": 0}, "matching: cut must be at least 1, not 0"),
        ({"tokens": "words"}, "matching: tokens must be one of 'bytes', 'bpe', not 'words'"),
        ({"vocabulary": 256}, "matching: vocabulary must be above 256, the bytes, not 256"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        tasks.build("matching", **options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1.0\ta\tb\ttext\n", r"test.tsv: row 1: should have 5 columns, not 4"),
        (b"yes\ta\tb\ttext\ttext\n", r"test.tsv: row 1: should begin with 0.0 or 1.0, not 'yes'"),
        (b"", "matching: no pair is left for test; 'aan' needs more texts"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(line: bytes, message: str, data_folder: Path):
    (data_folder / "lra_release" / "tsv_data" / AAN["test"]).write_bytes(line)
    with pytest.raises(DataError, match=message):
        load("aan")


@pytest.mark.parametrize(("value", "fault"), [(None, "missing"), ("", "empty")])
def test_a_text_that_is_missing_or_empty_is_said_in_one_line(value: Any, fault: str, data_folder: Path):
    rows = pl.read_parquet(data_folder / FILMS)
    third = pl.col("movie") == 3
    stored(rows.with_columns(text=pl.when(third).then(pl.lit(value)).otherwise("text")), data_folder / FILMS)
    with pytest.raises(DataError, match=rf"'text': {fault} in {rows.filter(third).height} rows; leave them"):
        load("films")


def test_the_archive_of_the_reviews_holds_the_same_pairs_as_the_table(data_folder: Path):
    before = load("films")
    archive = write_archive(pl.read_parquet(data_folder / FILMS), data_folder)
    (data_folder / FILMS).unlink()
    assert load("films").fingerprint == before.fingerprint
    addresses = archive / "test" / "urls_pos.txt"
    lines = addresses.read_text().splitlines()
    addresses.write_text("\n".join(["about:blank", *lines[1:]]))
    with pytest.raises(DataError, match="line 1: should be the address of a film, not 'about:blank'"):
        load("films")
    addresses.write_text(lines[0])
    with pytest.raises(DataError, match=r"urls_pos\.txt has 1 lines, and none for its film"):
        load("films")
    for review in (archive / "test" / "pos").iterdir():
        review.unlink()
    with pytest.raises(DataError, match=r"holds no review, NUMBER_RATING\.txt: unpack https"):
        load("films")


def test_it_is_said_what_is_missing(data_folder: Path, monkeypatch: pytest.MonkeyPatch):
    files = {"aan": AAN["train"], "aan_mini": PAPERS, "films": FILMS}
    papers = pl.read_parquet(data_folder / PAPERS)
    stored(papers[1:], data_folder / PAPERS)
    with pytest.raises(DataError, match=rf"{CITATIONS}: 1 papers are not in {PAPERS}, such as 'P000'"):
        load("aan_mini")
    stored(pl.read_parquet(data_folder / FILMS).drop("movie"), data_folder / FILMS)
    with pytest.raises(DataError, match=r"imdb_labelled.parquet: cannot be read: .*movie"):
        load("films")
    write_aan(data_folder / "again", **LINES)
    with pytest.raises(DataError, match=f"several folders have {AAN['train']}: keep one of "):
        load("aan")
    for path in [*data_folder.rglob("*.parquet"), *data_folder.rglob("*.tsv")]:
        path.unlink()
    for pairs, file in files.items():
        with pytest.raises(DataError, match=rf"\(SUBQUAD_DATA\) has (no )?{file}"):
            load(pairs)
    monkeypatch.delenv("SUBQUAD_DATA")
    for pairs, file in files.items():
        with pytest.raises(DataError, match=f"SUBQUAD_DATA is not set: let it name a folder with {file}"):
            load(pairs)


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", ""), ("a", "b", "c")])
def test_what_is_no_pair_of_texts_is_not_read(pair: Any):
    with pytest.raises(DataError, match="pair 1 should be two texts that are not empty, not"):
        PairedTexts().batch([("a", "b"), pair], 5)
    with pytest.raises(DataError, match="texts have no moment"):
        PairedTexts().batch([("a", "b")], 5, until=1)
    assert PairedTexts().fields == Pair(side=Tokens(vocabulary=256))


@pytest.mark.parametrize(("pairs", "tokens"), FINGERPRINTS)
def test_pairs_are_the_same_everywhere(pairs: str, tokens: str):
    shared({"films": FILMS, "aan_mini": PAPERS}[pairs])
    data = load(pairs, tokens=tokens, train=200, validation=20, test=50, vocabulary=512)
    assert data.fingerprint == FINGERPRINTS[pairs, tokens]
