"""Texts with an answer each, read by bytes or by the tokens of a byte-pair encoding trained on them."""

from subquad.fields import SPLITS
from subquad.tasks.columns import reading_of_text
from subquad.tasks.custom.answers import Asked, reading_of_answer
from subquad.tasks.custom.rows import about, answered, chosen, cut_of, read_rows
from subquad.tasks.custom.schema import Schema, TextTable
from subquad.tasks.encoding import ENTITY
from subquad.tasks.sequences import SequenceData, Sequences
from subquad.tasks.source import open_table
from subquad.tasks.text import bag_of_words, require_tokenizers, trained_encoding

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
    encoding = trained_encoding(texts["train"], tokens=table.tokens, vocabulary=table.vocabulary)
    return SequenceData(
        splits={
            split: Sequences.of(encoding.ids(texts[split], cut), answers[split], group=choice.group[split])
            for split in SPLITS
        },
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
