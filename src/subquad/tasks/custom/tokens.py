"""Sequences of tokens, a list in each row, with an answer each or with an answer at each of their tokens."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int
from torch import Tensor

from subquad.fields import IGNORED, SPLITS, Inputs, Split, Tokens
from subquad.objectives import TokenClassification
from subquad.task import InputEncoding
from subquad.tasks.columns import reading_of_list
from subquad.tasks.custom.answers import ANSWER, Asked, encode_targets, reading_of_answer
from subquad.tasks.custom.rows import about, answered, chosen, cut_of, read_rows
from subquad.tasks.custom.schema import Schema, Target, TokensTable
from subquad.tasks.encoding import ENTITY, RARE
from subquad.tasks.errors import DataError
from subquad.tasks.sequences import SequenceData, Sequences, padded
from subquad.tasks.source import ROW, SHOWN, open_table
from subquad.tasks.splits import split_of
from subquad.tasks.text import bag_of_words

TOKENS = "tokens"
ASKED = Asked("sequence", "sequences")
UNKNOWN = 0  # the id of all tokens that the vocabulary has not


@dataclass(frozen=True, kw_only=True)
class TokenLists(InputEncoding):
    """How lists of tokens become ids: 0 stands for the unknown ones.

    `vocabulary`: the tokens of the ids from 1 on; of whole numbers, their digits.
    """

    vocabulary: tuple[str, ...]

    @property
    def fields(self) -> Tokens:
        return Tokens(vocabulary=len(self.vocabulary) + 1)

    def batch(
        self, inputs: Any, length: int, *, until: Any = None
    ) -> tuple[pl.Series, Inputs, Bool[Tensor, "b t"]]:
        """`inputs`: a list of tokens for each sequence, cut at `length` as in training.

        Raises `DataError` for an empty one, and for tokens that are not all text or all whole numbers.
        """
        if until is not None:
            raise DataError("sequences of tokens have no moment: leave until= out")
        try:
            given = pl.Series(TOKENS, [None if isinstance(each, str) else list(each) for each in inputs])
        except (TypeError, pl.exceptions.PolarsError):
            raise DataError(
                "tokens are all text or all whole numbers: give a list of them for each sequence"
            ) from None
        with open_table(pl.DataFrame([given]), [TOKENS]) as source:
            source.refuse_empty()
            lists = source.checked([reading_of_list(source, TOKENS, name=TOKENS)]).collect()[TOKENS]
        ids, stop = self.ids(lists.list.head(length))
        tokens, valid = padded(np.split(ids, stop[:-1]))
        return given, (tokens,), valid

    def ids(self, lists: pl.Series) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " s"]]:
        """Those of all tokens, one sequence after the other, and where each sequence ends."""
        numbers = range(1, len(self.vocabulary) + 1)
        known = pl.Series(self.vocabulary, dtype=pl.String), pl.Series(numbers, dtype=pl.Int32)
        flat = lists.explode().replace_strict(*known, default=UNKNOWN, return_dtype=pl.Int32)
        return flat.to_numpy(), np.cumsum(lengths(lists))


def load_tokens(schema: Schema, name: str, *, length: int | None) -> SequenceData:
    """The data that a schema describes, for the target of this name.

    The first `cut` tokens of a sequence are kept, and of these the first `length`. Raises `DataError`, one
    message with file, column and first rows, where anything is amiss.
    """
    table, target = schema.table, schema.targets[name]
    assert isinstance(table, TokensTable)
    each = target.kind == TokenClassification.kind  # token has an answer
    columns = (*table.columns, target.column)
    with open_table(table.path, columns, encoding=table.encoding, decimal=table.decimal) as source:
        lists = reading_of_list(source, table.column, name=TOKENS)
        answer = (
            reading_of_list(source, target.column, name=ANSWER) if each else reading_of_answer(source, target)
        )
        rows = read_rows(source, [lists], table, answer)
    place = f"{table.path}: column {target.column!r}"
    cut = cut_of(table, length)
    if each:
        require_equal_lengths(rows, place=place)
        rows = rows.with_columns(pl.col(ANSWER).list.head(cut))
    rows = rows.with_columns(pl.col(TOKENS).list.head(cut))
    owners = rows[ENTITY].to_list() if table.entity else list(map(json.dumps, rows[TOKENS].to_list()))
    train = rows[TOKENS].filter(pl.Series([split_of(owner) == "train" for owner in owners]))
    encoding = TokenLists(vocabulary=vocabulary(train, table.vocabulary))
    every, ends = encoding.ids(rows[TOKENS])
    choice = chosen(owners, [ids.tobytes() for ids in np.split(every, ends[:-1])])
    parts: dict[Split, pl.Series] = {split: rows[TOKENS][choice.places[split]] for split in SPLITS}
    if each:
        labels: dict[Split, pl.Series] = {split: rows[ANSWER][choice.places[split]] for split in SPLITS}
        require_examples(labels, len(rows), place=place)
        objective, answers = encoded_labels(target, labels, place=place)
    else:
        objective, answers = answered(rows, choice, target, place=place, asked=ASKED)
    splits, unknown = {}, {}
    for split in SPLITS:
        ids, stop = encoding.ids(parts[split])
        asked = np.broadcast_to(np.arange(answers[split].shape[1]), answers[split].shape) if each else None
        splits[split] = Sequences(ids, stop, answers[split], asked, group=choice.group[split])
        unknown[split] = int((ids == UNKNOWN).sum())
    bag = bag_of_words(lambda ids: [str(token) for token in ids.tolist()], quantity=objective.quantity)
    return SequenceData(
        splits=splits,
        fields=encoding.fields,
        target=name,
        objective=objective,
        readers={"token by token": token_by_token} if each else {"bag of tokens": bag},
        encoding=encoding,
        about={
            **about(table, name, objective, choice, cut=cut, asked=ASKED),
            "vocabulary": encoding.fields.vocabulary,
            "unknown tokens": unknown,
        },
    )


def require_equal_lengths(rows: pl.DataFrame, *, place: str) -> None:
    """Raise `DataError` where a sequence has more or fewer labels than tokens."""
    counts = rows.select(ROW, tokens=pl.col(TOKENS).list.len(), labels=pl.col(ANSWER).list.len())
    other = counts.filter(pl.col("tokens") != pl.col("labels"))
    if len(other):
        first = ", ".join(
            f"row {row}: {labels:,} labels of {tokens:,} tokens"
            for row, tokens, labels in other.head(SHOWN).rows()
        )
        raise DataError(
            f"{place}: {len(other):,} of {len(rows):,} lists are not as long as the list of tokens, first: "
            f"{first}; give each token one label"
        )


def require_examples(labels: dict[Split, pl.Series], count: int, *, place: str) -> None:
    """Raise `DataError` where no sequence falls in a split."""
    for split, part in labels.items():
        if part.is_empty():
            raise DataError(f"{place}: none of the {count:,} sequences falls in {split}: give more sequences")


def encoded_labels(
    target: Target, labels: dict[Split, pl.Series], *, place: str
) -> tuple[Any, dict[Split, Int[np.ndarray, "s q"]]]:
    """What is asked, and a row of classes for each sequence, filled up with `IGNORED`."""
    flat: dict[Split, pl.Series] = {split: part.explode() for split, part in labels.items()}
    objective, numbers = encode_targets(target, flat, place=place, asked=Asked("token", "tokens"))
    return objective, {split: filled_up(numbers[split], lengths(part)) for split, part in labels.items()}


def lengths(lists: pl.Series) -> Int[np.ndarray, " s"]:
    return lists.list.len().cast(pl.Int64).to_numpy()


def filled_up(numbers: Int[np.ndarray, " n"], counts: Int[np.ndarray, " s"]) -> Int[np.ndarray, "s q"]:
    rows = np.full((len(counts), int(counts.max())), IGNORED, np.int32)
    rows[np.arange(rows.shape[1]) < counts[:, None]] = numbers
    return rows


def vocabulary(train: pl.Series, wanted: int | tuple[str, ...]) -> tuple[str, ...]:
    """The tokens that are known: these, or the most frequent of training, of which rare ones are none."""
    if isinstance(wanted, tuple):
        return wanted
    counts = pl.DataFrame({TOKENS: train.explode()}).group_by(TOKENS).len().filter(pl.col("len") >= RARE)
    return tuple(counts.sort("len", TOKENS, descending=[True, False])[TOKENS].head(wanted))


def token_by_token(train: Sequences, test: Sequences) -> Int[np.ndarray, "s q"]:
    """What each token's label mostly was in training, whatever stands around it."""
    classes = int(max(train.answer.max(), test.answer.max())) + 1
    answers = train.answer[train.answer != IGNORED]
    symbols = int(max(train.symbols.max(), test.symbols.max())) + 1
    counts = np.bincount(train.symbols * classes + answers, minlength=symbols * classes)
    counts = counts.reshape(symbols, classes)
    commonest = np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())
    return filled_up(commonest[test.symbols], test.lengths)
