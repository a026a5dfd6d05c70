"""Sequences of symbols with their answers: the data of tasks over text, pixels, expressions and probes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer, Real
from torch import Tensor

from subquad.fields import IGNORED, SPLITS, Batch, Events, Split, Tokens
from subquad.objectives import Supervised
from subquad.task import Baseline, Dataset
from subquad.tasks.batching import batched
from subquad.tasks.errors import DataError

HASHED = 2**22  # numbers at a time


@dataclass(frozen=True)
class Sequences:
    """Sequences one after the other, with the answer of each, or its answers at some of its tokens."""

    symbols: Integer[np.ndarray, "n ..."]  # of each token, or of each of its columns
    stop: Int[np.ndarray, " s"]  # where a sequence ends and the next begins
    answer: Real[np.ndarray, "s ..."]
    asked: Int[np.ndarray, "s q"] | None = None  # places within a sequence, in order; None: of the whole

    def __len__(self) -> int:
        return len(self.stop)

    @property
    def start(self) -> Int[np.ndarray, " s"]:
        return np.concatenate([[0], self.stop[:-1]]).astype(np.int64)

    @property
    def lengths(self) -> Int[np.ndarray, " s"]:
        return self.stop - self.start

    def take(self, places: slice) -> "Sequences":
        """Some of them, that stand side by side."""
        start, stop = self.start[places], self.stop[places]
        first, last = (start[0], stop[-1]) if len(stop) else (0, 0)
        asked = None if self.asked is None else self.asked[places]
        return Sequences(self.symbols[first:last], stop - first, self.answer[places], asked)


Reader = Callable[
    [Sequences, Sequences], np.ndarray
]  # of train and test: answers as `Supervised.choose` takes them


@dataclass(frozen=True, kw_only=True)
class SequenceData(Dataset):
    """A task's sequences in three splits, read from their first symbol on.

    `fields`: what a token holds; of `Events`, no numbers.
    `readers`: baselines beyond "majority", by name.
    `solve`: the answer of one sequence, where it can be worked out; where tokens are asked, that of each
        token, `IGNORED` at others.
    """

    splits: Mapping[Split, Sequences]
    fields: Tokens | Events
    target: str
    objective: Supervised
    readers: Mapping[str, Reader]
    solve: Callable[[Sequence[Any]], int | Sequence[int]] | None = None
    encoding: Any = None
    about: Mapping[str, Any]

    @property
    def longest(self) -> int:
        return max(int(part.lengths.max()) for part in self.splits.values())

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of all symbols and answers, and of what is asked."""
        total = sha256(f"{self.target} {self.objective}".encode())
        for split in SPLITS:
            part = self.splits[split]
            numbers = [(part.symbols, "<i4"), (part.stop, "<i8")]
            numbers += [(part.answer, "<f8" if self.objective.quantity else "<i8")]
            numbers += [] if part.asked is None else [(part.asked, "<i8")]
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
            "history": {"median": float(np.median(part.lengths)), "longest": int(part.lengths.max())},
        }
        if part.asked is not None:
            counts["questions"] = part.asked.shape[1]
        elif self.objective.classes:
            classes = np.bincount(part.answer, minlength=len(self.objective.classes)).tolist()
            counts["classes"] = dict(zip(self.objective.classes, classes, strict=True))
        return counts

    def truth(self, split: Split) -> Real[np.ndarray, "n ..."]:
        return self.splits[split].answer

    def batches(
        self, split: Split, *, size: int, length: int, seed: int, epoch: int, shuffle: bool
    ) -> Iterator[Batch]:
        part = self.splits[split]
        start, lengths = part.start, np.minimum(part.lengths, length)
        for chosen in batched(lengths, size=size, seed=seed, epoch=epoch, shuffle=shuffle):
            place = np.arange(lengths[chosen].max())
            valid = place < lengths[chosen][:, None]
            ids = part.symbols[np.where(valid, start[chosen][:, None] + place, 0)].astype(np.int64)
            ids[~valid] = 0
            numbers = () if isinstance(self.fields, Tokens) else (torch.zeros(*valid.shape, 0),)
            yield Batch(
                inputs=(torch.from_numpy(ids), *numbers),
                valid=torch.from_numpy(valid),
                target=self._target(part, chosen, valid.shape[1]),
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

    def oracle(self, batch: Batch) -> Tensor | None:
        if self.solve is None:
            return None
        ids = batch.inputs[0]
        answers = [self.solve(row[valid].tolist()) for row, valid in zip(ids, batch.valid, strict=True)]
        return self.objective.certain(np.array(answers))


def padded(rows: Sequence[np.ndarray]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Ids of new sequences, and where they are; padding stands last and is 0."""
    lengths = torch.tensor([[len(row)] for row in rows])
    valid = torch.arange(max(map(len, rows), default=1)) < lengths
    ids = torch.zeros(valid.shape, dtype=torch.int64)
    ids[valid] = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    return ids, valid


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
