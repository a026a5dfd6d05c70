"""Every byte of a text is asked for once, from those before it or around it, and its bits are counted."""

import gzip
import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from experiments_sample import QUICK, changed
from published import shared

import subquad
from subquad import tasks
from subquad.experiments.comparison import plan
from subquad.experiments.config import Comparison
from subquad.experiments.model import build_model
from subquad.experiments.predictor import export
from subquad.experiments.training import Training
from subquad.fields import IGNORED, SPLITS, Split
from subquad.objectives import NextToken
from subquad.tasks import DataError
from subquad.tasks.compression import trigram
from subquad.tasks.documents import Documents, beginnings, read_corpus
from subquad.tasks.language import Language, LanguageData
from subquad.tasks.windows import OUTSIDE, Windows, ask_masked, ask_next
from subquad.testing.task import Case, contract

LENGTH = 32
FINGERPRINT = "1a0d9c21db0aa607264a3db09930829909a699da23e76ad6a181a01a4cc38213"  # of quick
ORDER = {"size": 3, "length": LENGTH, "seed": 0, "epoch": 0, "shuffle": False}
SEVERAL = [b"first document", b"ab", b"\xff" * (2 * LENGTH), b"x"]


def write_folder(folder: Path, texts: list[bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for place, text in enumerate(texts):
        (folder / f"{place}.txt").write_bytes(text)
    return folder


def prose(count: int, seed: int = 0) -> list[bytes]:
    """Documents of words, of up to 600 bytes."""
    chance = np.random.default_rng(seed)
    words = [b"the", b"cat", b"sat", b"on", b"a", b"mat", b"\xe9t\xe9", b"and"]
    return [b" ".join(chance.choice(words, chance.integers(20, 150))) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("texts"), prose(40))


def load(path: Path, **options: Any) -> LanguageData:
    data = tasks.load("language", **{"path": str(path), "length": LENGTH, **options})
    assert isinstance(data, LanguageData)
    return data


def spec(data: LanguageData, path: Path, *, attention: str = "linear", causal: bool = True) -> Any:
    return changed(
        QUICK,
        data={
            "task": "language",
            "target": data.target,
            "options": {"path": str(path)},
            "fingerprint": data.fingerprint,
            "length": data.longest,
        },
        mechanism={"attention": attention, "causal": causal},
        training={"steps": 2},
    )


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, Case]:
    class Short(Language):
        def load(self, *, target: str | None = None, length: int | None = None) -> LanguageData:
            return super().load(target=target, length=LENGTH)

    return {target: Case(Short(path=str(folder)), target) for target in Language.traits.targets}


@pytest.mark.parametrize("target", Language.traits.targets)
@pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
def test_contract(check, target: str, cases: dict[str, Case]):
    check(cases[target])


def test_every_byte_is_asked_for_once_and_read_one_token_later():
    windows = Windows(Documents.of(SEVERAL), LENGTH)
    read = {place: bytearray() for place in range(len(SEVERAL))}
    for batch in sorted(
        windows.batches(ask_next, **{**ORDER, "size": 1}), key=lambda batch: int(batch.example)
    ):
        document = int(windows.document[int(batch.example)])
        before = read[document][-1] if read[document] else OUTSIDE
        target = batch.target[0].tolist()
        assert batch.offset is not None
        assert int(batch.offset) == len(read[document])
        assert batch.inputs[0][0].tolist() == [before, *target[:-1]]
        read[document].extend(target)
    assert [bytes(text) for text in read.values()] == SEVERAL


@pytest.mark.parametrize("target", ["next", "masked"])
def test_a_model_that_knows_nothing_needs_eight_bits(folder: Path, target: str):
    data = load(folder, target=target)
    scorer = data.objective.scorer()
    for batch in data.batches("test", **ORDER):
        scorer.add(torch.full((*batch.valid.shape, 256), 3.0), batch)
    judged = scorer.result()
    assert judged.scores[data.objective.metric] == pytest.approx(8, abs=1e-6)
    assert scorer.loss == judged.scores["loss"] == pytest.approx(math.log(256), abs=1e-6)
    np.testing.assert_allclose(judged.contributions, 8, atol=1e-6)


def test_a_model_that_knows_the_period_needs_nothing_but_the_first_byte(tmp_path: Path):
    (tmp_path / "periodic").write_bytes(bytes(range(97, 101)) * 1000)
    data = load(tmp_path / "periodic")
    following = torch.zeros(257, 256)
    following[range(97, 101), [98, 99, 100, 97]] = 50.0
    scorer = data.objective.scorer()
    for batch in data.batches("test", **ORDER):
        scorer.add(following[batch.inputs[0]], batch)
    assert scorer.result().scores["bits_per_byte"] == pytest.approx(8 / 200)
    assert data.judged(trigram(data.splits["train"], data.splits["test"])).scores["bits_per_byte"] < 0.05


@pytest.mark.parametrize("target", ["next", "masked"])
def test_a_score_is_all_bits_over_all_bytes_and_its_parts_make_it_up(folder: Path, target: str):
    data = load(folder, target=target)
    scorer, bits, count = data.objective.scorer(), 0.0, 0
    for batch in data.batches("test", **ORDER):
        output = torch.randn(*batch.valid.shape, 256)
        scorer.add(output, batch)
        asked = batch.target != IGNORED
        chance = output.softmax(-1)[asked].gather(1, batch.target[asked][:, None])
        bits, count = bits - chance.log2().sum().item(), count + int(asked.sum())
    judged = scorer.result()
    assert judged.scores[data.objective.metric] == pytest.approx(bits / count, rel=1e-5)
    assert judged.contributions.mean() == pytest.approx(bits / count, rel=1e-5)
    assert set(judged.breakdown) == {"position in the document", "position in the window"}
    for parts in judged.breakdown.values():
        assert sum(part.count for part in parts.values()) == count
        assert sum((part.value or 0) * part.count for part in parts.values()) == pytest.approx(bits, rel=1e-5)


def test_parts_are_by_where_a_byte_stands_in_its_document():
    windows = Windows(Documents.of([bytes(1100), bytes(300)]), 512)
    scorer = NextToken().scorer()
    for batch in windows.batches(ask_next, **{**ORDER, "length": 512}):
        assert batch.offset is not None
        position = batch.offset[:, None].numpy() + np.arange(batch.valid.shape[1])
        scorer.add_bits(np.where(position < 256, 4.0, np.where(position < 512, 3.0, 1.0)), batch)
    assert scorer.result().breakdown == {
        "position in the document": {
            "0 to 255": (4.0, 512),
            "256 to 511": (3.0, 300),
            "512 to 1,023": (1.0, 512),
            "1,024 to 2,047": (1.0, 76),
        },
        "position in the window": {
            "0 to 255": ((4 * 512 + 332) / 844, 844),
            "256 to 511": ((3 * 300 + 256) / 556, 556),
        },
    }


def expected(model: torch.nn.Module, texts: list[bytes], document: int) -> np.ndarray:
    """The logarithms of the probabilities at each byte of one of the documents."""
    windows = Windows(Documents.of(texts), LENGTH)
    chances = np.zeros((len(windows.documents.symbols), 256))
    for batch in windows.batches(ask_next, **ORDER):
        valid = batch.valid.numpy()
        places = windows.places(batch.example.numpy(), valid)[valid]
        chances[places] = model(batch.inputs, batch.valid).log_softmax(-1).detach().numpy()[valid]
    return chances[windows.documents.start[document] : windows.documents.stop[document]]


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_no_byte_is_told_by_itself_or_a_later_one_or_another_document(folder: Path, attention: str):
    data = load(folder)
    model = build_model(spec(data, folder, attention=attention), data).eval()
    text, others = bytes(range(100)), prose(2)
    before = expected(model, [others[0], text], 1)
    for place in (1, LENGTH - 1, LENGTH, 50):
        changed_text = text[:place] + b"\xff" + text[place + 1 :]
        after = expected(model, [others[1], changed_text], 1)
        np.testing.assert_allclose(after[: place + 1], before[: place + 1], atol=1e-5)
        assert not np.allclose(after[place + 1], before[place + 1], atol=1e-3)


def hidden(data: LanguageData, split: Split, **order: Any) -> dict[int, list[int]]:
    """Which tokens of each window are masked."""
    batches = data.batches(split, **{**ORDER, **order})
    return {
        int(place): target.ne(IGNORED).nonzero().flatten().tolist()
        for batch in batches
        for place, target in zip(batch.example, batch.target, strict=True)
    }


def test_masks_are_fixed_for_validation_and_test_and_drawn_anew_in_training(folder: Path):
    data = load(folder, target="masked")
    for split in ("validation", "test"):
        assert hidden(data, split) == hidden(data, split, seed=1, epoch=2, size=7, shuffle=True)
    first = hidden(data, "train", seed=1)
    assert first == hidden(data, "train", seed=1, size=7, shuffle=True)
    for other in ({"seed": 1, "epoch": 1}, {"seed": 2}):
        assert first != hidden(data, "train", **other)


def test_a_masked_byte_is_not_seen_and_the_others_are():
    windows = Windows(Documents.of(SEVERAL), LENGTH)
    for batch in windows.batches(ask_masked, **ORDER):
        asked, ids = batch.target != IGNORED, batch.inputs[0]
        assert (asked.sum(1) == (0.15 * batch.valid.sum(1)).round().clamp(min=1)).all()
        assert (ids[asked] == OUTSIDE).all()
        places = torch.from_numpy(windows.places(batch.example.numpy(), batch.valid.numpy()))
        true = torch.from_numpy(windows.bytes_at(places.numpy()))
        assert torch.equal(batch.target[asked], true[asked])
        assert torch.equal(ids[batch.valid & ~asked], true[batch.valid & ~asked])


@pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("xz", lzma.compress)])
def test_a_compressor_needs_what_its_files_take(tmp_path: Path, name: str, compress: Any):
    data = load(write_folder(tmp_path / "texts", [text * 9 for text in prose(40)]))
    texts = data.splits["test"].texts
    size = sum(8 * len(compress(text)) for text in texts) / sum(map(len, texts))
    judged = data.judged(data.baseline(name, length=LENGTH, seed=0))
    assert judged.scores["bits_per_byte"] == pytest.approx(size)
    parts = judged.breakdown["position in the document"]
    beginning = sum(8 * len(compress(text[:256])) for text in texts) / parts["0 to 255"].count
    assert parts["0 to 255"].value == pytest.approx(beginning)


@pytest.mark.parametrize("piece", [1, 2, 7, 2**22])
def test_a_trigram_is_counted_within_documents_whatever_is_counted_at_a_time(piece: int, monkeypatch: Any):
    monkeypatch.setattr("subquad.tasks.compression.COUNTED", piece)
    train, test = [b"abab", b"b", b"ba"], [b"ab", b"ba"]
    frequency = {"a": (3 + 1) / (7 + 256), "b": (4 + 1) / (7 + 256)}
    start = {each: (count + 2 * frequency[each]) / (3 + 2) for each, count in (("a", 1), ("b", 2))}
    start = {each: (count + 2 * start[each]) / (3 + 2) for each, count in (("a", 1), ("b", 2))}
    after_a = (2 + frequency["b"]) / 3
    after_b = (2 + frequency["a"]) / 3
    ab, ba = (1 + after_a) / 2, (1 + after_b) / 2
    bits = trigram(Documents.of(train), Documents.of(test))
    np.testing.assert_allclose(2.0**-bits, [start["a"], ab, start["b"], ba])


def test_documents_are_divided_by_content_whatever_their_names(tmp_path: Path):
    texts = prose(50)
    here, there = (write_folder(tmp_path / name, texts[::step]) for name, step in (("a", 1), ("b", -1)))
    splits = read_corpus(str(here)).splits
    assert {split: len(part) for split, part in splits.items()} == {"train": 46, "validation": 2, "test": 2}
    assert read_corpus(str(there)).splits == splits
    assert sorted(text for part in splits.values() for text in part) == sorted(texts)


def test_the_same_text_stands_in_one_split_and_empty_ones_in_none(tmp_path: Path):
    texts = prose(6)
    corpus = read_corpus(str(write_folder(tmp_path / "texts", [*texts, *texts[:3], b"", b""])))
    assert sorted(text for part in corpus.splits.values() for text in part) == sorted(texts)
    assert corpus.left_out == {"empty": 2, "repeated": 3}


def test_one_file_is_cut_in_three(tmp_path: Path):
    text = bytes(range(200))
    (tmp_path / "one").write_bytes(text)
    splits = read_corpus(str(tmp_path / "one")).splits
    assert splits == {"train": [text[:180]], "validation": [text[180:190]], "test": [text[190:]]}


def test_a_table_says_which_split_a_text_is_for_and_none_stands_in_two(tmp_path: Path):
    rows = {
        "text": ["a", "b", "c", "d", "a", "b"],
        "split": ["train", "train", "valid", "test", "test", "train"],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "texts.parquet")
    corpus = read_corpus(str(tmp_path / "texts.parquet"))
    assert {split: set(part) for split, part in corpus.splits.items()} == {
        "train": {b"b"},
        "validation": {b"c"},
        "test": {b"a", b"d"},
    }
    assert corpus.left_out == {"empty": 0, "repeated": 2}
    pl.DataFrame({"text": prose(40)}).write_parquet(tmp_path / "bytes.parquet")
    assert len(read_corpus(str(tmp_path / "bytes.parquet")).splits["train"]) == 36


def test_of_so_many_bytes_beginnings_of_many_texts_are_taken_alike():
    texts = [bytes(1000)] * 5 + [bytes(100_000)] * 5
    assert beginnings(texts, None) == texts
    for limit in (1, 999, 1000, 4500, 50_000, 75_000, 10**6):
        taken = beginnings(texts, limit)
        lengths = list(map(len, taken))
        whole = lengths == list(map(len, texts[: len(taken)]))
        assert (0 if whole else limit - len(taken)) < sum(lengths) <= limit
        assert lengths == [min(len(text), max(lengths)) for text in texts[: len(taken)]]
        assert len(taken) == 1 or all(
            n >= 32_768 or n == len(text) for n, text in zip(lengths, texts, strict=False)
        )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"a": b"1", "b": b"1", "c": b"2"},
            r"no document is left for train, of 3 \(0 of them empty\): give at l",
        ),
        ({}, r"no document is left for train, of 0"),
    ],
)
def test_too_few_documents_are_refused_in_one_line(texts: dict[str, bytes], message: str, tmp_path: Path):
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=message):
        read_corpus(str(tmp_path))


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        DataError, match="nowhere: no such file or folder: give a text, a folder of texts, or"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="language: train must be at least 1 byte, not 0"):
        tasks.build("language", train=0)
    table = tmp_path / "table.parquet"
    pl.DataFrame({"words": ["a"]}).write_parquet(table)
    with pytest.raises(DataError, match="column 'text': should hold texts, and is not there"):
        load(table)
    pl.DataFrame({"text": [1]}).write_parquet(table)
    with pytest.raises(DataError, match="column 'text': should hold texts, and is of type Int64"):
        load(table)
    pl.DataFrame({"text": ["a"], "split": ["dev"]}).write_parquet(table)
    with pytest.raises(DataError, match=r"column 'split': should be one of 'train', 'valid', .*, not 'dev'"):
        load(table)
    table.write_bytes(b"no table")
    with pytest.raises(DataError, match=r"table\.parquet: cannot be read: "):
        load(table)
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"has no gutenberg/books.parquet: name a folder with .* of your own"):
        tasks.load("language")
    monkeypatch.delenv("SUBQUAD_DATA")
    with pytest.raises(DataError, match="the task 'language': SUBQUAD_DATA is not set: name a folder with"):
        tasks.load("language")


@pytest.mark.parametrize(("target", "form"), [("next", True), ("masked", False)])
def test_the_next_byte_is_asked_of_causal_forms_and_masked_ones_of_others(
    folder: Path, target: str, form: bool
):
    made = plan(
        Comparison(
            tasks=(f'language:path="{folder}"',),
            target=target,
            attention=("softmax", "linear"),
            length=LENGTH,
        )
    )
    assert {spec.mechanism.causal for spec in made.fits} == {form}
    (document,) = made.document["tasks"]
    assert document["higher_is_better"] is False
    assert document["unit"] == "byte"


@pytest.mark.parametrize("target", ["next", "masked"])
def test_a_trained_model_reads_new_texts_as_on_test(folder: Path, target: str, tmp_path: Path):
    data = load(folder, target=target)
    fit = spec(data, folder, causal=data.objective.causal)
    training = Training(fit, data, checkpoint_path=tmp_path / "checkpoint", tell=lambda *_: None)
    training.run()
    export(training.model, data, fit, tmp_path / "model")
    model = subquad.load_model(tmp_path / "model")
    texts = data.splits["test"].texts
    answers = model.predict(texts)
    assert answers["text"].to_list() == texts
    bits = answers[data.objective.metric_label] * answers["bytes"]
    tested = training.evaluate("test").scores[data.objective.metric]
    assert (bits / answers["bytes"].sum()).sum() == pytest.approx(tested, rel=1e-5)
    if target == "next":
        assert answers["bytes"].to_list() == list(map(len, texts))
        assert model.predict(["é"])["bytes"].to_list() == [2]
    with pytest.raises(DataError, match="text 1 is empty: leave it out"):
        model.predict(["a", ""])
    with pytest.raises(DataError, match="there is no text"):
        model.predict([])


def test_books_are_the_same_everywhere():
    shared("gutenberg/books.parquet")
    data = tasks.load("language", size="quick")
    assert {split: data.summary["splits"][split]["entities"] for split in SPLITS} == {
        "train": 140,
        "validation": 9,
        "test": 7,
    }
    assert data.fingerprint == FINGERPRINT
