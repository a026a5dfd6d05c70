"""Texts with an answer each, read by bytes or by the tokens of a byte-pair encoding trained on them."""

import numpy as np

from subquad.fields import SPLITS
from subquad.tasks.columns import reading_of_text
from subquad.tasks.custom.answers import Asked, reading_of_answer
from subquad.tasks.custom.rows import about, answered, chosen, cut_of, read_rows
from subquad.tasks.custom.schema import Schema, TextTable
from subquad.tasks.encoding import ENTITY
from subquad.tasks.sequences import SequenceData, Sequences
from subquad.tasks.source import open_table
from subquad.tasks.text import TextEncoding, bag_of_words, require_tokenizers, trained_tokenizer

TEXT = "text"
ASKED = Asked("text", "texts")


def load_text(schema: Schema, name: str, *, length: int | None) -> SequenceData:
    """The data that a schema describes, for the target of this name.

    The first `cut` tokens of a text are kept, and of these the first `length`. Raises `DataError`, one
    message with file, column and first rows, where anything is amiss.
    """
    table, target = schema.table, schema.targets[name]
    assert isinstance(table, TextTable)
    if table.tokens == "bpe":
        require_tokenizers()
    columns = (*table.columns, target.column)
    with open_table(table.path, columns, encoding=table.encoding, decimal=table.decimal) as source:
        texts = reading_of_text(source, table.column, name=TEXT)
        rows = read_rows(source, [texts], table, reading_of_answer(source, target))
    cut = cut_of(table, length)
    contents = [text.encode()[:cut] for text in rows[TEXT]]  # as many tokens are no fewer bytes
    choice = chosen(rows[ENTITY].to_list() if table.entity else contents, contents)
    place = f"{table.path}: column {target.column!r}"
    objective, answers = answered(rows, choice, target, place=place, asked=ASKED)
    texts = {split: rows[TEXT][choice.places[split]].to_list() for split in SPLITS}
    encoding = TextEncoding()
    if table.tokens == "bpe":
        encoding = TextEncoding(tokenizer=trained_tokenizer(texts["train"], table.vocabulary))
    splits = {}
    for split in SPLITS:
        ids = encoding.ids(texts[split], cut)
        splits[split] = Sequences(
            np.concatenate(ids),
            np.cumsum([len(row) for row in ids]),
            answers[split],
            group=choice.group[split],
        )
    return SequenceData(
        splits=splits,
        fields=encoding.fields,
        target=name,
        objective=objective,
        readers={"bag of words": bag_of_words(encoding.words, quantity=objective.quantity)},
        encoding=encoding,
        about={
            **about(table, name, objective, choice, cut=cut, asked=ASKED),
            "tokens": table.tokens,
            "vocabulary": encoding.fields.vocabulary,
        },
    )
