"""Sequences of symbols with their answers: the data of tasks over text, pixels, expressions and probes.

An example is a sequence, or a pair of them. A sequence that stands in several pairs is kept once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer, Real
from torch import Tensor

from subquad.fields import IGNORED, SPLITS, Batch, Fields, Pair, Split, Tokens, token_fields
from subquad.objectives import Kinds, Supervised
from subquad.task import Baseline, Dataset, SupervisedData
from subquad.tasks.batching import batched
from subquad.tasks.errors import DataError
from subquad.tasks.kinds import ranges

HASHED = 2**22  # numbers at a time


@dataclass(frozen=True)
class Sequences:
    """Sequences one after the other, with the answer of each, or its answers at some of its tokens; or with
    the answers of pairs of them.
    """

    symbols: Integer[np.ndarray, "n ..."]  # of each token, or of each of its columns
    stop: Int[np.ndarray, " s"]  # where a sequence ends and the next begins
    answer: Real[np.ndarray, "e ..."]
    asked: Int[np.ndarray, "e q"] | None = None  # places within a sequence, in order; None: of the whole
    pair: Int[np.ndarray, "e 2"] | None = None  # which two sequences an example has; None: each has one
    group: Int[np.ndarray, " e"] | None = None  # of examples that are not independent; None: all are

    def __len__(self) -> int:
        return len(self.answer)

    @property
    def start(self) -> Int[np.ndarray, " s"]:
        return np.concatenate([[0], self.stop[:-1]]).astype(np.int64)

    @property
    def lengths(self) -> Int[np.ndarray, " s"]:
        return self.stop - self.start

    @property
    def of_example(self) -> Int[np.ndarray, "e ..."]:
        """Which sequence an example has, or which two."""
        return np.arange(len(self.stop)) if self.pair is None else self.pair

    @property
    def longer(self) -> Int[np.ndarray, " e"]:
        """Tokens of each example's sequence; of a pair those of the longer side."""
        lengths = self.lengths[self.of_example]
        return lengths if self.pair is None else lengths.max(1)

    @property
    def each(self) -> list[Integer[np.ndarray, "_ ..."]]:
        """The symbols of each sequence."""
        return [self.symbols[start:stop] for start, stop in zip(self.start, self.stop, strict=True)]

    @classmethod
    def of(
        cls, each: Sequence[Integer[np.ndarray, "_ ..."]], answer: Real[np.ndarray, "e ..."], **other: Any
    ) -> "Sequences":
        """Those whose symbols are given one by one; `other` fields by name."""
        return cls(np.concatenate(each), np.cumsum([len(one) for one in each]), answer, **other)

    def take(self, places: slice) -> "Sequences":
        """Some of the examples, that stand side by side."""
        asked, pair, group = (
            None if each is None else each[places] for each in (self.asked, self.pair, self.group)
        )
        symbols, stop = self.symbols, self.stop
        if pair is None:
            start, stop = self.start[places], self.stop[places]
            first, last = (start[0], stop[-1]) if len(stop) else (0, 0)
            symbols, stop = symbols[first:last], stop - first
        return Sequences(symbols, stop, self.answer[places], asked, pair, group)


Reader = Callable[
    [Sequences, Sequences], np.ndarray
]  # of train and test: answers as `Supervised.choose` takes them


def by_length(part: Sequences) -> Mapping[str, Kinds]:
    """By the length of a sequence, where each has one answer and not all are equally long."""
    if part.asked is not None or not np.ptp(part.longer):
        return {}
    return {"length": ranges(part.longer)}


@dataclass(frozen=True, kw_only=True)
class SequenceData(SupervisedData):
    """A task's sequences in three splits, read from their first symbol on.

    `fields`: what a token holds; of `Events`, no numbers.
    `readers`: baselines beyond "majority", by name.
    `solve`: the answer of one sequence or of a pair's two, where it can be worked out; where tokens are
        asked, that of each token, `IGNORED` at others.
    `sort`: of what kind each answer is; by the length of its sequence, unless a task knows better.
    """

    splits: Mapping[Split, Sequences]
    fields: Fields
    target: str
    objective: Supervised
    readers: Mapping[str, Reader]
    solve: Callable[[Sequence[Any]], int | Sequence[int]] | None = None
    sort: Callable[[Sequences], Mapping[str, Kinds]] = by_length
    encoding: Any = None
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        for split, part in self.splits.items():
            if isinstance(self.fields, Pair) != (part.pair is not None):
                examples = "sequences" if part.pair is None else "pairs"
                raise ValueError(f"examples of {split} are {examples}, and fields is {self.fields!r}")

    @property
    def longest(self) -> int:
        return max(int(part.longer.max()) for part in self.splits.values())

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of all symbols and answers, and of what is asked."""
        total = sha256(f"{self.target} {self.objective}".encode())
        for split in SPLITS:
            part = self.splits[split]
            numbers = [(part.symbols, "<i4"), (part.stop, "<i8")]
            numbers += [(part.answer, "<f8" if self.objective.quantity else "<i8")]
            numbers += [(places, "<i8") for places in (part.asked, part.pair) if places is not None]
            for column, kind in numbers:
                for first in range(0, len(column), HASHED):
                    total.update(column[first : first + HASHED].astype(kind, order="C").data)
        return total.hexdigest()

    @property
    def summary(self) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {**self.about, "splits": {split: self._summary(part) for split, part in self.splits.items()}}

    def _summary(self, part: Sequences) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "examples": len(part),
            "history": {"median": float(np.median(part.longer)), "longest": int(part.longer.max())},
        }
        if part.asked is not None:
            counts["questions"] = part.asked.shape[1]
        elif self.objective.classes:
            classes = np.bincount(part.answer, minlength=len(self.objective.classes)).tolist()
            counts["classes"] = dict(zip(self.objective.classes, classes, strict=True))
        return counts

    def truth(self, split: Split) -> Real[np.ndarray, "n ..."]:
        return self.splits[split].answer

    def group(self, split: Split) -> Int[np.ndarray, " n"]:
        group = self.splits[split].group
        return super().group(split) if group is None else group

    def batches(
        self, split: Split, *, size: int, length: int, seed: int, epoch: int, shuffle: bool
    ) -> Iterator[Batch]:
        part = self.splits[split]
        start, lengths = part.start, np.minimum(part.lengths, length)
        longer = np.minimum(part.longer, length)
        for chosen in batched(longer, size=size, seed=seed, epoch=epoch, shuffle=shuffle):
            rows = part.of_example[chosen]
            place = np.arange(lengths[rows].max())
            valid = place < lengths[rows][..., None]
            ids = part.symbols[np.where(valid, start[rows][..., None] + place, 0)].astype(np.int64)
            ids[~valid] = 0
            symbols_alone = isinstance(token_fields(self.fields), Tokens)
            numbers = () if symbols_alone else (torch.zeros(*valid.shape, 0),)
            yield Batch(
                inputs=(torch.from_numpy(ids), *numbers),
                valid=torch.from_numpy(valid),
                target=self._target(part, chosen, valid.shape[-1]),
                example=torch.from_numpy(chosen),
            )

    def _target(self, part: Sequences, chosen: Int[np.ndarray, " b"], length: int) -> Tensor:
        answer = self.objective.encode(part.answer[chosen])
        if part.asked is None:
            return answer
        asked = torch.from_numpy(part.asked[chosen])
        target = torch.full((len(chosen), max(length, int(asked.max()) + 1)), IGNORED)
        return target.scatter_(1, asked, answer)[:, :length]

    def baselines(self) -> tuple[Baseline, ...]:
        return tuple(Baseline(name, seeded=False) for name in ("majority", *self.readers))

    def baseline(self, name: str, *, length: int, seed: int) -> np.ndarray:
        if name == "majority":
            return self.objective.constant(self.truth("train"), count=len(self.splits["test"]))
        return self.readers[name](self.splits["train"], self.splits["test"])

    def kinds(self, split: Split) -> Mapping[str, Kinds]:
        return self.sort(self.splits[split])

    def oracle(self, batch: Batch) -> Tensor | None:
        if self.solve is None:
            return None
        ids = batch.inputs[0]
        answers = [self.solve(real_tokens(*example)) for example in zip(ids, batch.valid, strict=True)]
        return self.objective.certain(np.array(answers))


def padded(rows: Sequence[np.ndarray]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Ids of new sequences, and where they are; padding stands last and is 0."""
    lengths = torch.tensor([[len(row)] for row in rows])
    valid = torch.arange(max(map(len, rows), default=1)) < lengths
    ids = torch.zeros(valid.shape, dtype=torch.int64)
    ids[valid] = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    return ids, valid


def real_tokens(ids: Tensor, valid: Bool[Tensor, "*sides t"]) -> list[Any]:
    """An example's sequence without its padding, or its two."""
    if valid.ndim == 1:
        return ids[valid].tolist()
    return [side[real].tolist() for side, real in zip(ids, valid, strict=True)]


def slices(sizes: Mapping[Split, int]) -> dict[Split, slice]:
    """Which of so many examples, one after the other, are of each split."""
    ends = np.cumsum([sizes[split] for split in SPLITS]).tolist()
    return {split: slice(end - sizes[split], end) for split, end in zip(SPLITS, ends, strict=True)}


def require_length(data: Dataset, length: int | None) -> None:
    """Raise `DataError` where `length` would cut sequences whose answer lies in the whole."""
    if length is not None and length < data.longest:
        raise DataError(
            f"sequences have up to {data.longest:,} tokens and none can be answered in part: give a length "
            f"of as many, not {length:,}, or make them shorter by the task's options"
        )
