"""Texts are read as they are, each by one split, from a file or from the hub."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import reviews, shared, stored, use_hub

from subquad import tasks
from subquad.fields import SPLITS, Split, Tokens
from subquad.tasks import DataError
from subquad.tasks.published import chosen, in_order
from subquad.tasks.sequences import SequenceData
from subquad.tasks.text import IMDB, Text, TextEncoding, trained_tokenizer
from subquad.testing.task import Case, contract

BPE: dict[str, Any] = {"tokens": "bpe", "vocabulary": 300}
FINGERPRINTS = {
    "bytes": "dd7ce17d0c40e9119ab37c55d3be91d15de34edd45123e0dd0972720b2ef41cb",
    "bpe": "12d6ba5441e7eaa4bfdc1c0ac55c10fb86d335ba378793ec3bc87d9092695b5c",
}
TRAIN, TEST = reviews(400, 0), reviews(120, 1)


@pytest.fixture
def imdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small one below SUBQUAD_DATA."""
    stored(tmp_path, IMDB.file, "text", train=TRAIN, test=TEST)
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path))
    return tmp_path


def load(**options: Any) -> SequenceData:
    data = tasks.load("text", **options)
    assert isinstance(data, SequenceData)
    return data


def texts(data: SequenceData, split: Split) -> list[bytes]:
    part = data.splits[split]
    return [part.symbols[start:stop].tobytes() for start, stop in zip(part.start, part.stop, strict=True)]


@pytest.mark.parametrize("options", [{"cut": 40}, {"cut": 20, **BPE}], ids=["bytes", "bpe"])
@pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
def test_contract(check, options: dict[str, Any], imdb: Path):
    check(Case(Text(**options), "sentiment"))


def test_bytes_are_those_of_the_review_cut_at_length(imdb: Path):
    data = load(cut=50)
    order = in_order([text.encode() for text in TEST["text"]])
    assert texts(data, "test") == [TEST["text"][place].encode()[:50] for place in order]
    assert data.truth("test").tolist() == [TEST["label"][place] for place in order]
    assert data.fields == Tokens(vocabulary=256)


def test_validation_is_a_tenth_of_training_whatever_the_sizes(imdb: Path):
    whole, part = load(), load(train=30, validation=7, test=9)
    assert len(whole.truth("validation")) == 40
    assert len(whole.truth("train")) == 360
    for split in SPLITS:
        few = texts(part, split)
        assert few == texts(whole, split)[: len(few)]


def test_splits_do_not_depend_on_the_order_of_the_rows():
    examples = [str(number).encode() for number in range(50)]
    sizes = dict.fromkeys(SPLITS, 50)
    here, there = (chosen(order, [b"x"], sizes).places for order in (examples, examples[::-1]))
    for split in ("train", "validation"):
        assert [examples[place] for place in here[split]] == [examples[49 - place] for place in there[split]]


def test_what_stands_in_test_or_twice_is_left_out_of_training_and_counted():
    train = [b"%d and more" % number for number in range(40)] + [b"seen before", b"7 and more", b"seen later"]
    choice = chosen(train, [b"seen never", b"0 and more"], dict.fromkeys(SPLITS, 99), length=5)
    assert choice.left_out == {"also in test": 3, "repeated": 1}
    read = [train[place][:5] for split in ("train", "validation") for place in choice.places[split]]
    assert len(read) == len(set(read)) == 39
    assert not {b"seen ", b"0 and"} & set(read)


def test_the_hub_gives_what_the_file_gives(imdb: Path, monkeypatch: pytest.MonkeyPatch):
    local = load()
    use_hub(monkeypatch, imdb={"train": TRAIN, "test": TEST})
    hub = load()
    assert hub.fingerprint == local.fingerprint
    assert (local.summary["data"], hub.summary["data"]) == (
        "IMDb from SUBQUAD_DATA",
        "IMDb, stanfordnlp/imdb",
    )


@pytest.mark.parametrize("options", [{}, BPE], ids=["bytes", "bpe"])
def test_new_texts_are_read_as_those_of_training(options: dict[str, Any], imdb: Path):
    data = load(cut=60, **options)
    encoding = TextEncoding(**json.loads(json.dumps(asdict(data.encoding))))
    batch = next(data.batches("test", size=3, length=60, seed=0, epoch=0, shuffle=False))
    order = in_order([text.encode() for text in TEST["text"]])
    _, (ids,), valid = encoding.batch([TEST["text"][order[place]] for place in batch.example], 60)
    assert ids.tolist() == batch.inputs[0].tolist()
    assert valid.tolist() == batch.valid.tolist()


def test_no_text_is_beyond_a_tokenizer_and_training_it_again_gives_the_same():
    first, again = (trained_tokenizer(TRAIN["text"], 300) for _ in range(2))
    assert first == again
    encoding = TextEncoding(tokenizer=first)
    strange = "ß→ 漢字 \x00"
    assert encoding.bpe.get_vocab_size() == encoding.fields.vocabulary == 300
    (ids,) = encoding.ids([strange], 99)
    alphabet = encoding.bpe.encode(strange).tokens
    assert len(ids) == len(alphabet) >= len(strange)
    assert len(encoding.ids([TRAIN["text"][0]], 999)[0]) < len(TRAIN["text"][0])


@pytest.mark.parametrize("tokens", ["bytes", "bpe"])
def test_a_bag_of_words_tells_much(tokens: str, imdb: Path):
    data = load(tokens=tokens)
    output = data.baseline("bag of words", length=data.longest, seed=0)
    assert (data.objective.choose(output) == data.truth("test")).mean() > 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, r"text: train, validation and test must be at least 1, not \(0, 2500, 25000\)"),
        ({"cut": 0}, "text: cut must be at least 1, not 0"),
        ({"tokens": "words"}, "text: tokens must be one of 'bytes', 'bpe', not 'words'"),
        ({"vocabulary": 256}, "text: vocabulary must be above 256, the bytes, not 256"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        tasks.build("text", **options)


def test_it_is_said_how_to_get_what_is_missing(imdb: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    for module in ("text", "published"):
        monkeypatch.setattr(
            f"subquad.tasks.{module}.find_spec",
            lambda name: None if name in {"datasets", "tokenizers"} else find(name),
        )
    install = r'pip install "subquad\[published\]"'
    with pytest.raises(DataError, match=f"the package tokenizers, which is not installed: {install}"):
        load(tokens="bpe")
    (imdb / IMDB.file).unlink()
    with pytest.raises(DataError, match=rf"has no {IMDB.file}, and the package datasets, .*{install}"):
        load()
    monkeypatch.delenv("SUBQUAD_DATA")
    with pytest.raises(DataError, match="the task 'text': SUBQUAD_DATA is not set, and the package datasets"):
        load()


def test_a_lost_connection_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch):
    use_hub(monkeypatch)
    with pytest.raises(DataError, match="'stanfordnlp/imdb' cannot be downloaded: no route; try again, or"):
        load()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"text": ["a"], "label": [2]}, "column 'label': should be 0 to 1, not 2 to 2"),
        ({"text": [None, "b"], "label": [0, 1]}, "column 'text': missing in 1 rows of train; leave them out"),
        ({"text": [], "label": []}, "column 'split': no row has 'train'"),
        (
            {"text": ["a", "b"], "label": [0, 1]},
            r"for validation, of 2 for training \(0 also in test, 0 repeated\)",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(
    train: dict[str, list[Any]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stored(tmp_path, IMDB.file, "text", train=train, test=TEST)
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path))
    with pytest.raises(DataError, match=message):
        load()


@pytest.mark.parametrize("tokens", FINGERPRINTS)
def test_reviews_of_imdb_are_the_same_everywhere(tokens: str):
    shared(IMDB.file)
    data = load(tokens=tokens, train=200, validation=20, test=50, vocabulary=512)
    assert data.summary["training reviews left out"] == {"also in test": 123, "repeated": 99}
    assert data.fingerprint == FINGERPRINTS[tokens]


def test_no_moment_and_no_empty_text_is_read():
    with pytest.raises(DataError, match="texts have no moment"):
        TextEncoding().batch(["a"], 5, until=1)
    with pytest.raises(DataError, match="text 1 is empty: leave it out"):
        TextEncoding().batch(["a", ""], 5)
    with pytest.raises(DataError, match="tokenizer: cannot be read"):
        _ = TextEncoding(tokenizer="{}").fields
    assert np.array_equal(TextEncoding().batch(["é"], 1)[1][0], [[0xC3]])
