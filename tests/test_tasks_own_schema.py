"""Schemas of own data that cannot be meant: the message names section and key, and the nearest known."""

from pathlib import Path

import pytest
from rows_sample import LABELS, PAIRS, TEXT, TOKENS, changed, pages, written

from subquad.tasks import DataError
from subquad.tasks.custom import Custom

BPE = changed(TEXT, "text", tokens="bpe")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kind = "texts"\n', "unknown kind 'texts'; did you mean 'text'?"),
        ("kind = 3\n", "unknown kind 3; there are 'events', 'language', 'pairs', 'text', 'tokens'"),
        ('knd = "text"\n', "unknown key 'knd' above all sections; did you mean 'kind'?"),
        (
            '[text]\npath = "a.csv"\n',
            "there is a section [text] and no kind: write kind = 'text' above all sections, or take the "
            "section out",
        ),
        (
            'kind = "tokens"\n[text]\n',
            "there is a section [text] and kind = 'tokens': write kind = 'text' above all sections, or take "
            "the section out",
        ),
        ('kind = "text"\n[txt]\n', "unknown section [txt]; did you mean 'text'?"),
        (
            'kind = "language"\n[language]\npath = "letters"\n[target]\ncolumn = "stars"\n',
            "[target] has no place beside [language], whose text is what is asked: take it out",
        ),
        ('kind = "text"\n[text]\n', "[text] lacks the key 'path'"),
        ('kind = "text"\n[target]\n', "there is no section [text]"),
    ],
)
def test_a_schema_of_no_kind_is_refused(tmp_path: Path, text: str, said: str):
    path = tmp_path / "schema.toml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        Custom(schema=str(path))
    assert str(caught.value) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("schema", "section", "keys", "said"),
    [
        (TEXT, "text", {"cut": 0}, "[text] cut must be a whole number of at least 1, not 0"),
        (TEXT, "text", {"cut": "9"}, "[text] cut must be a whole number of at least 1, not '9'"),
        (TEXT, "text", {"tokens": "words"}, "[text] tokens must be 'bytes' or 'bpe', not 'words'"),
        (BPE, "text", {"vocabulary": 256}, "[text] vocabulary must be a whole number of at least 257, not "),
        (
            TEXT,
            "text",
            {"vocabulary": 999},
            "[text] vocabulary is that of tokens = 'bpe': there are 256 bytes",
        ),
        (TEXT, "text", {"kind": "text"}, "[text] has the key 'kind': it stands above all sections"),
        (TEXT, "text", {"time": "day"}, "unknown key 'time' in [text]; there are 'column', 'cut', "),
        (TEXT, "target", {"entity": "a"}, "unknown key 'entity' in [target]; there are 'column', 'kind', "),
        (TEXT, "target", {"kind": "tokens"}, "unknown kind 'tokens'; there are 'binary', 'multiclass', "),
        (TEXT, "target", {"column": "review"}, "the answer 'review' is also an input: take it out of [text]"),
        (LABELS, "target", {"metric": "auc"}, "metric 'auc' does not fit kind 'tokens': use 'accuracy'"),
        (PAIRS, "pairs", {"first": None}, "[pairs] lacks the key 'first'"),
        (PAIRS, "pairs", {"colum": "a"}, "unknown key 'colum' in [pairs]; there are "),
        (PAIRS, "target", {"column": "answer"}, "the answer 'answer' is also an input: take it out of "),
        (TOKENS, "tokens", {"vocabulary": ["a", "a"]}, "[tokens] vocabulary names 'a' twice"),
        (
            TOKENS,
            "tokens",
            {"vocabulary": 0.5},
            "[tokens] vocabulary must be a whole number of at least 1 or a list of tokens, not 0.5",
        ),
        (TOKENS, "tokens", {"vocabulary": [1]}, "[tokens] vocabulary must be a list of tokens, not [1]"),
    ],
)  # fmt: skip
def test_a_schema_that_says_what_cannot_be_is_refused(tmp_path: Path, schema, section: str, keys, said: str):
    path = written(tmp_path, pages().select("bought"), changed(schema, section, **keys))
    with pytest.raises(DataError) as caught:
        Custom(schema=str(path))
    assert str(caught.value).startswith(f"{tmp_path / 'schema.toml'}: {said}")
