"""Pairs of texts with an answer each, read by bytes or by the tokens of a byte-pair encoding."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from jaxtyping import Int, Real

from subquad.fields import SPLITS, Split
from subquad.tasks.columns import reading_of_text
from subquad.tasks.custom.answers import Asked, reading_of_answer
from subquad.tasks.custom.rows import about, answered, chosen, cut_of, read_rows
from subquad.tasks.custom.schema import PairsTable, Schema
from subquad.tasks.encoding import ENTITY
from subquad.tasks.matching import PairedTexts, cosine
from subquad.tasks.sequences import SequenceData, Sequences
from subquad.tasks.source import open_table
from subquad.tasks.text import bag_of_words, require_tokenizers, trained_encoding

SIDES = ("first", "second")
ASKED = Asked("pair", "pairs")

Texts = tuple[str, str]


def load_pairs(schema: Schema, name: str, *, length: int | None) -> SequenceData:
    """The data that a schema describes, for the target of this name.

    The first `cut` tokens of each text are kept, and of these the first `length`. Raises `DataError`, one
    message with file, column and first rows, where anything is amiss.
    """
    table, target = schema.table, schema.targets[name]
    assert isinstance(table, PairsTable)
    if table.tokens == "bpe":
        require_tokenizers()
    columns = (*table.columns, target.column)
    with open_table(table.path, columns, encoding=table.encoding, decimal=table.decimal) as source:
        sides = [
            reading_of_text(source, column, name=side)
            for side, column in zip(SIDES, table.inputs, strict=True)
        ]
        rows = read_rows(source, sides, table, reading_of_answer(source, target))
    cut = cut_of(table, length)
    pairs: list[Texts] = rows.select(SIDES).rows()
    contents = [content(pair, cut) for pair in pairs]
    choice = chosen(rows[ENTITY].to_list() if table.entity else contents, contents)
    place = f"{table.path}: column {target.column!r}"
    objective, answers = answered(rows, choice, target, place=place, asked=ASKED)
    parts: dict[Split, list[Texts]] = {
        split: [pairs[place] for place in choice.places[split]] for split in SPLITS
    }
    texts = {split: dict.fromkeys(chain.from_iterable(part)) for split, part in parts.items()}
    trained = trained_encoding(texts["train"], tokens=table.tokens, vocabulary=table.vocabulary)
    encoding = PairedTexts(tokenizer=trained.tokenizer)
    words = encoding.texts.words
    both = bag_of_words(
        lambda pair: [f"{side} {word}" for side, ids in zip(SIDES, pair, strict=True) for word in words(ids)],
        quantity=objective.quantity,
    )
    return SequenceData(
        splits={
            split: encoded(parts[split], encoding, cut, answers[split], choice.group[split])
            for split in SPLITS
        },
        fields=encoding.fields,
        target=name,
        objective=objective,
        readers={"bag of words": both}
        | ({"tf-idf cosine": cosine(encoding)} if len(objective.classes) == 2 else {}),
        encoding=encoding,
        about={
            **about(table, name, objective, choice, cut=cut, asked=ASKED),
            "tokens": table.tokens,
            "vocabulary": encoding.texts.fields.vocabulary,
            "texts of test": {
                "all": len(texts["test"]),
                "also in training": len(texts["test"].keys() & texts["train"].keys()),
            },
        },
    )


def content(pair: Texts, cut: int) -> bytes:
    """What a model reads of a pair, whichever side comes first."""
    first, second = sorted(text.encode()[:cut] for text in pair)  # as many tokens are no fewer bytes
    return b"%d " % len(first) + first + second


def encoded(
    pairs: Sequence[Texts],
    encoding: PairedTexts,
    cut: int,
    answer: Real[np.ndarray, " e"],
    group: Int[np.ndarray, " e"],
) -> Sequences:
    """A split, each of whose texts stands there once."""
    numbers: dict[str, int] = {}
    pair = np.array([[numbers.setdefault(text, len(numbers)) for text in texts] for texts in pairs])
    return Sequences.of(encoding.texts.ids(list(numbers), cut), answer, pair=pair, group=group)
