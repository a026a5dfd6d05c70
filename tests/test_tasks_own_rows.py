"""Own texts and lists of tokens: what is read, in which split, and what is said of what cannot be read."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rows_sample import LABELS, PAIRS, TEXT, TOKENS, changed, loaded, pages, pairs, texts, written
from torch.nn import functional as F

from subquad.documents import validated
from subquad.fields import IGNORED, SPLITS, Split, Tokens
from subquad.task import SupervisedData
from subquad.tasks import DataError
from subquad.tasks.custom import Custom
from subquad.tasks.custom.rows import chosen
from subquad.tasks.custom.tokens import TokenLists, filled_up
from subquad.tasks.encoding import RARE
from subquad.tasks.sequences import SequenceData
from subquad.tasks.splits import split_of
from subquad.tasks.text import TextEncoding
from subquad.testing.task import Case, contract

BPE = changed(TEXT, "text", tokens="bpe", vocabulary=280, cut=6)
PARQUET = changed(TEXT, "text", path="rows.parquet")
STARS = {**TEXT, "target": {"column": "words", "kind": "regression"}}
GRADES = {**PAIRS, "target": {"column": "grade", "kind": "multiclass"}}
BY_AUTHOR = changed(TEXT, "text", entity="author", cut=9)
BY_VISITOR = changed(TOKENS, "tokens", entity="visitor", vocabulary=["3", "4", "nowhere"])
EVERY: dict[str, tuple[pl.DataFrame, Mapping[str, Any]]] = {
    "bytes": (texts(), TEXT),
    "bpe": (texts(), BPE),
    "quantity": (texts(), STARS),
    "by author": (texts(), BY_AUTHOR),
    "pairs": (pairs(), PAIRS),
    "pairs by question": (pairs(), changed(GRADES, "pairs", entity="question", tokens="bpe", cut=12)),
    "tokens": (pages(), TOKENS),
    "by visitor": (pages(), BY_VISITOR),
    "labels": (pages(), LABELS),
    "labels, cut": (pages(), changed(LABELS, "tokens", cut=4)),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {
        name: Case(Custom(schema=str(written(tmp_path_factory.mktemp("own"), table, schema))), None)
        for name, (table, schema) in EVERY.items()
    }


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
def test_contract(check, name: str, cases: dict[str, Case]):
    check(cases[name])


def read(data: SequenceData, split: Split) -> list[bytes]:
    part = data.splits[split]
    return [part.symbols[start:stop].tobytes() for start, stop in zip(part.start, part.stop, strict=True)]


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_text_is_its_first_bytes_with_its_answer_in_the_split_of_its_content(tmp_path: Path, end: str):
    data = loaded(tmp_path, texts(), changed(TEXT, "text", path=f"rows.{end}", cut=20))
    stars = texts()["stars"].to_list()
    contents = [text.encode()[:20] for text in texts()["review"]]
    for split in SPLITS:
        rows = [place for place, content in enumerate(contents) if split_of(content) == split]
        assert read(data, split) == [contents[place] for place in rows]
        assert data.truth(split).tolist() == [stars[place] for place in rows]


def test_an_entitys_rows_are_of_one_split_and_one_group(tmp_path: Path):
    data = loaded(tmp_path, pages(), changed(TOKENS, "tokens", entity="visitor"))
    visitors = pages()["visitor"].unique()
    for split in SPLITS:
        here = [name for name in visitors if split_of(name) == split]
        assert len(set(data.group(split).tolist())) == len(here)


def test_the_order_of_rows_decides_nothing_but_the_order_of_examples(tmp_path: Path):
    there = loaded(tmp_path, texts(), TEXT)
    here = loaded(tmp_path, texts().reverse(), TEXT)
    for split in SPLITS:
        assert read(here, split) == read(there, split)[::-1]


def test_what_stands_in_a_later_split_is_left_out_and_counted():
    train, validation, test = (
        next(name for name in map(str, range(99)) if split_of(name) == split) for split in SPLITS
    )
    owners = [train, test, validation, train, train, test]
    choice = chosen(owners, [b"a", b"a", b"b", b"b", b"c", b"a"])
    assert choice.places == {"train": [4], "validation": [2], "test": [1, 5]}
    assert (choice.left_out, choice.repeated) == (2, 1)
    assert {split: group.tolist() for split, group in choice.group.items()} == {
        "train": [0],
        "validation": [0],
        "test": [0, 0],
    }


def test_a_pair_has_both_its_texts_and_its_answer(tmp_path: Path):
    data = loaded(tmp_path, pairs(), changed(PAIRS, "pairs", cut=14))
    cut = [tuple(text.encode()[:14] for text in row) for row in pairs().select("question", "answer").rows()]
    found = []
    for split in SPLITS:
        part = data.splits[split]
        every = read(data, split)
        assert part.pair is not None
        found += [(every[one], every[other]) for one, other in part.pair]
    assert sorted(found) == sorted(cut)


def test_the_same_pair_the_other_way_round_is_in_the_same_split(tmp_path: Path):
    turned = pairs().select("helpful", question="answer", answer="question")
    table = pl.concat([pairs().select(turned.columns), turned])
    data = loaded(tmp_path, table, PAIRS)
    check = next(check for check in contract() if check.__name__ == "check_splits_are_disjoint")
    check(Case(Custom(schema=str(tmp_path / "schema.toml")), None))
    assert sum(len(data.truth(split)) for split in SPLITS) == len(table)


def test_no_entity_of_pairs_stands_in_two_splits(cases: dict[str, Case]):
    summary = cases["pairs by question"].data.summary
    assert summary["splits by"] == "question"
    for split in SPLITS:
        assert summary["splits"][split]["examples"] % 3 == 0  # each question is asked three times


@pytest.mark.parametrize("name", ["bytes", "tokens", "labels", "pairs"])
def test_a_shorter_length_cuts_the_data_for_models_and_baselines_alike(name: str, tmp_path: Path):
    table, schema = EVERY[name]
    data = loaded(tmp_path, table, schema, length=4)
    assert data.longest == 4
    assert data.summary["cut"] == 4
    if name == "pairs":
        assert data.splits["test"].lengths.max() == 4
    if name == "labels":
        assert data.truth("test").shape[1] == 4


def test_a_token_has_the_label_that_stands_in_its_place(tmp_path: Path):
    data = loaded(tmp_path, pages(), LABELS)
    assert isinstance(data.encoding, TokenLists)
    assert data.objective.classes == ("a", "b", "c")
    expected = {tuple(map(str, row[0])): row[1] for row in pages().select("pages", "tags").rows()}
    for batch in data.batches("test", size=7, length=99, seed=0, epoch=0, shuffle=False):
        for ids, valid, target in zip(batch.inputs[0], batch.valid, batch.target, strict=True):
            row = tuple(data.encoding.vocabulary[number - 1] for number in ids[valid])
            assert [data.objective.classes[number] for number in target[valid]] == expected[row]
            assert (target[~valid] == IGNORED).all()


def test_a_score_of_labels_counts_every_token_alike(tmp_path: Path):
    data = loaded(tmp_path, pages(), LABELS)
    truth = data.truth("test")
    guess = np.where(np.arange(len(truth))[:, None] % 2, truth, (truth + 1) % 3)
    right = (guess == truth) & (truth != IGNORED)
    value, parts = data.objective.judge(truth, guess)
    assert value == pytest.approx(right.sum() / (truth != IGNORED).sum())
    assert parts.mean() == pytest.approx(value)


def test_labels_judged_batch_by_batch_are_judged_as_at_once(cases: dict[str, Case]):
    data = cases["labels"].data
    assert isinstance(data, SequenceData)
    scorer = data.objective.scorer()
    for batch in data.batches("test", size=7, length=99, seed=0, epoch=0, shuffle=True):
        scorer.add(F.one_hot(batch.inputs[0] % 3, 3).float(), batch)
    part = data.splits["test"]
    value, parts = data.objective.judge(part.answer, filled_up(part.symbols % 3, part.lengths))
    judged = scorer.result()
    assert judged.scores["accuracy"] == pytest.approx(value)
    np.testing.assert_allclose(judged.contributions, parts)


def test_cheap_readers_read_what_there_is_to_read(cases: dict[str, Case]):
    for name, baseline, least in (
        ("bytes", "bag of words", 0.65),
        ("pairs", "tf-idf cosine", 0.6),
        ("tokens", "bag of tokens", 0.65),
        ("labels", "token by token", 0.7),
    ):
        data = cases[name].data
        assert isinstance(data, SupervisedData)
        output = data.baseline(baseline, length=99, seed=0)
        assert data.objective.judge(data.truth("test"), data.objective.choose(output))[0] > least
    data = cases["quantity"].data
    assert isinstance(data, SupervisedData)
    truth = data.truth("test")
    errors = [
        data.objective.judge(truth, data.baseline(name, length=99, seed=0))[0]
        for name in ("bag of words", "majority")
    ]
    assert errors[0] < errors[1]


def test_tokens_are_known_by_training_if_they_are_not_rare(tmp_path: Path):
    table = pages()
    split = [split_of(json.dumps(list(map(str, row)))) for row in table["pages"]]
    lists = [
        [*row, *([77] * RARE if first == place else [])]
        for place, row in enumerate(table["pages"].to_list())
        for first in [split.index("train")]
    ]
    rare = [row if place != split.index("test") else [*row, 88] for place, row in enumerate(lists)]
    data = loaded(tmp_path, table.with_columns(pages=pl.Series(rare)), TOKENS)
    assert isinstance(data.encoding, TokenLists)
    assert "88" not in data.encoding.vocabulary
    few = loaded(tmp_path, table, changed(TOKENS, "tokens", vocabulary=3))
    assert few.fields == Tokens(vocabulary=4)
    assert few.summary["unknown tokens"]["train"] > 0


def test_a_token_is_the_same_as_text_and_as_any_whole_number(tmp_path: Path):
    data = loaded(tmp_path, pages(), TOKENS)
    for kind in (pl.List(pl.String), pl.List(pl.UInt8), pl.List(pl.Categorical)):
        texts = pages()["pages"].cast(pl.List(pl.String)).cast(kind)
        assert loaded(tmp_path, pages().with_columns(texts), TOKENS).fingerprint == data.fingerprint


@pytest.mark.parametrize("name", ["bytes", "bpe", "tokens", "labels"])
def test_new_inputs_are_read_as_those_of_training(name: str, cases: dict[str, Case]):
    table, schema = EVERY[name]
    data = cases[name].data
    assert isinstance(data.encoding, TokenLists | TextEncoding)
    again = validated(type(data.encoding), json.loads(json.dumps(asdict(data.encoding))))
    column = "review" if "text" in schema else "pages"
    content = table[column].to_list()
    marks = {}
    for row in content:
        _, (ids,), valid = again.batch([row], data.summary["cut"])
        marks[tuple(ids[valid].tolist())] = row
    for batch in data.batches("test", size=9, length=999, seed=0, epoch=0, shuffle=False):
        for ids, valid in zip(batch.inputs[0], batch.valid, strict=True):
            assert tuple(ids[valid].tolist()) in marks


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([[1], []], "the given frame: column 'tokens': 1 value empty; leave out these rows: row 2: []"),
        ([[1, None]], "the given frame: column 'tokens': 1 value with a missing token; fill it in: row 1: "),
        ([[0.5]], "the given frame: column 'tokens' holds List(Float64), and not lists of text or whole"),
        ([[1, "a"]], "tokens are all text or all whole numbers: give a list of them for each sequence"),
        ([1, 2], "tokens are all text or all whole numbers: give a list of them for each sequence"),
        (["ab", [1]], "the given frame: column 'tokens': 1 value empty; leave out these rows: row 1: None"),
        ([], "the given frame: empty: there are no rows"),
    ],
)
def test_new_tokens_that_cannot_be_read_are_refused(inputs: list[Any], said: str):
    with pytest.raises(DataError) as caught:
        TokenLists(vocabulary=("1",)).batch(inputs, 9)
    assert str(caught.value).startswith(said)


def refusal(folder: Path, table: pl.DataFrame, schema: Mapping[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        loaded(folder, table, schema)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def spoilt(table: pl.DataFrame, column: str, *values: object) -> pl.DataFrame:
    """The same with other values in its first rows."""
    rest = table[column].to_list()[len(values) :]
    return table.with_columns(pl.Series(column, [*values, *rest], dtype=table.schema[column]))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("review", [None, "  "], "column 'review': 2 values empty; leave out these rows: row 1: "),
        ("stars", [None], "column 'stars': 1 value missing; fill in or leave out these rows: row 1: None"),
        ("stars", [7], "column 'stars': 3 values ('0', '1', '7', …), and kind 'binary' takes two"),
    ],
)
@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_texts_that_cannot_be_used_are_refused(tmp_path: Path, column: str, values, said: str, end: str):
    schema = changed(TEXT, "text", path=f"rows.{end}")
    message = refusal(tmp_path, spoilt(texts(), column, *values), schema)
    assert message.startswith(f"{tmp_path / f'rows.{end}'}: {said}")


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("pages", [[], None], "column 'pages': 2 values empty; leave out these rows: row 1: [], row 2: None"),
        ("pages", [[1, None]], "column 'pages': 1 value with a missing token; fill it in: row 1: [1, None]"),
        (
            "tags",
            [["a", None]],
            "column 'tags': 1 value with a missing token; fill it in: row 1: ['a', None]",
        ),
        (
            "tags",
            [["a"] * 99],
            "column 'tags': 1 of 240 lists are not as long as the list of tokens, first: row 1",
        ),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path: Path, column: str, values, said: str):
    message = refusal(tmp_path, spoilt(pages(), column, *values), LABELS)
    assert message.startswith(f"{tmp_path / 'rows.parquet'}: {said}")


def test_a_class_must_be_in_every_split(tmp_path: Path):
    table = spoilt(texts(), "stars", 5)
    message = refusal(tmp_path, table, changed(TEXT, "target", kind="multiclass"))
    assert "none of the 1 texts with the value '5' falls in " in message
    first = pages()["tags"][0].to_list()
    message = refusal(tmp_path, spoilt(pages(), "tags", ["z", *first[1:]]), LABELS)
    assert "none of the 1 tokens with the value 'z' falls in " in message


@pytest.mark.parametrize(
    ("table", "schema", "said"),
    [
        (texts().with_columns(review=pl.lit(3)), PARQUET, "holds Int32, not text"),
        (pages().with_columns(pages=pl.lit(3)), TOKENS, "holds Int32, and not lists of text or "),
        (pages().with_columns(tags=pl.lit("a")), LABELS, "column 'tags' holds String, and not lists"),
        (texts(), changed(TEXT, "text", column="reviw"), "no column 'reviw'; did you mean 'review'?"),
        (texts(), changed(TEXT, "text", entity="writer"), "no column 'writer'; there are 'author', "),
        (pairs().with_columns(answer=pl.lit("")), PAIRS, "column 'answer': 240 values empty; "),
        (texts().head(0), TEXT, "empty: there are no rows"),
        (texts().head(2), TEXT, "none of the 2 texts falls in "),
    ],
)  # fmt: skip
def test_a_table_of_another_kind_is_refused(tmp_path: Path, table, schema, said: str):
    assert said in refusal(tmp_path, table, schema)


def test_a_csv_has_no_lists(tmp_path: Path):
    table = pages().select(pl.col("pages").list.len(), "bought")
    message = refusal(tmp_path, table, changed(TOKENS, "tokens", path="rows.csv"))
    assert message.endswith(
        "holds String, and not lists of text or whole numbers, which a Parquet file may hold"
    )
