"""Language: which byte comes next, or which bytes are masked? On any texts.

The texts are a file, a folder or a Parquet table (`subquad.tasks.documents`), by default 156 books of Project
Gutenberg below the folder that SUBQUAD_DATA names. A byte's number is its value. Documents are read in
windows (`subquad.tasks.windows`) of as many bytes as the length of a comparison says, each by itself or, with
`carry`, one after the other.

A score is in bits per byte: those of the whole split over its bytes. Asked for the next one, every byte
counts, the first of a document and of a window too, so that compressors of the same bytes can be held against
it. Masked are the same bytes of validation and test each time, and others of training in each epoch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from subquad.fields import SPLITS, Batch, Split, Tokens
from subquad.objectives import Judged, MaskedToken, NextToken
from subquad.task import Baseline, Dataset, Task, TaskTraits
from subquad.tasks.compression import Reader, gzipped, trigram, unigram, xzipped
from subquad.tasks.documents import Corpus, Documents, beginnings, read_corpus
from subquad.tasks.errors import DataError
from subquad.tasks.windows import MASKED, OUTSIDE, Ask, Windows, ask_masked, ask_next

JUDGED = 64  # windows at a time


@dataclass(frozen=True, kw_only=True)
class LanguageQuestion:
    """What is asked of each window."""

    text: str
    objective: NextToken | MaskedToken
    ask: Ask
    readers: Mapping[str, Reader]  # baselines by name


QUESTIONS: Mapping[str, LanguageQuestion] = {
    "next": LanguageQuestion(
        text="which byte comes next?",
        objective=NextToken(),
        ask=ask_next,
        readers={"unigram": unigram, "trigram": trigram, "gzip": gzipped, "xz": xzipped},
    ),
    "masked": LanguageQuestion(
        text=f"which bytes are masked, {MASKED:.0%} of them?",
        objective=MaskedToken(),
        ask=ask_masked,
        readers={"unigram": unigram},
    ),
}


@dataclass(frozen=True, kw_only=True)
class LanguageData(Dataset):
    """Documents in three splits. An example is a window, and its group the document."""

    splits: Mapping[Split, Documents]
    target: str
    length: int  # bytes of a window at most
    about: Mapping[str, Any]

    fields = Tokens(vocabulary=OUTSIDE + 1)
    encoding = None
    windowed = True

    @property
    def question(self) -> LanguageQuestion:
        return QUESTIONS[self.target]

    @property
    def objective(self) -> NextToken | MaskedToken:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.question.objective

    @cached_property
    def windows(self) -> Mapping[Split, Windows]:
        return {split: Windows(part, self.length) for split, part in self.splits.items()}

    @property
    def longest(self) -> int:
        """Bytes of the longest window: with the same splits, a bound of as many gives the same windows."""
        return max(int(part.lengths.max()) for part in self.windows.values())

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of all bytes and where documents end, and of what is asked."""
        total = sha256(self.target.encode())
        for split in SPLITS:
            total.update(self.splits[split].stop.astype("<i8").data)
            total.update(self.splits[split].symbols.data)
        return total.hexdigest()

    @property
    def summary(self) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {**self.about, "splits": {split: self._summary(split) for split in SPLITS}}

    def _summary(self, split: Split) -> dict[str, Any]:
        part, lengths = self.splits[split], self.windows[split].lengths
        return {
            "examples": len(lengths),
            "entities": len(part),
            "bytes": len(part.symbols),
            "history": {"median": float(np.median(lengths)), "longest": int(lengths.max())},
        }

    def count(self, split: Split) -> int:
        return len(self.windows[split])

    def group(self, split: Split) -> Int[np.ndarray, " n"]:
        return self.windows[split].document

    def batches(
        self, split: Split, *, size: int, length: int, seed: int, epoch: int, shuffle: bool
    ) -> Iterator[Batch]:
        """Of validation and test, the same bytes are asked for in the same order whatever seed and epoch."""
        if split != "train":
            seed = epoch = 0
        return self.windows[split].batches(
            self.question.ask, size=size, length=length, seed=seed, epoch=epoch, shuffle=shuffle
        )

    def streams(self, split: Split, *, size: int, seed: int, epoch: int, shuffle: bool) -> Iterator[Batch]:
        if split != "train":
            seed = epoch = 0
        return self.windows[split].streams(
            self.question.ask, size=size, seed=seed, epoch=epoch, shuffle=shuffle
        )

    def baselines(self) -> tuple[Baseline, ...]:
        return tuple(Baseline(name, seeded=False) for name in self.question.readers)

    def baseline(self, name: str, *, length: int, seed: int) -> Float[np.ndarray, " n"]:
        """The bits of each byte of the test split, in its order."""
        return self.question.readers[name](self.splits["train"], self.splits["test"])

    def judged(self, output: Float[np.ndarray, " n"]) -> Judged:
        windows, scorer = self.windows["test"], self.objective.scorer()
        for batch in self.batches("test", size=JUDGED, length=self.longest, seed=0, epoch=0, shuffle=False):
            scorer.add_bits(output[windows.places(batch.example.numpy(), batch.valid.numpy())], batch)
        return scorer.result()


class Language(Task):
    """See the module.

    `path`: a text file, a folder of them, or a Parquet table with a column `text`. None: the books of Project
        Gutenberg below SUBQUAD_DATA.
    `train`, `validation`, `test`: bytes of each split at most, which are beginnings of many documents rather
        than a few whole ones. None: all.
    """

    traits = TaskTraits(
        name="language",
        description="the next byte of a text, or masked ones: any file or folder, or Project Gutenberg",
        targets=tuple(QUESTIONS),
        unit="byte",
        length=1024,
        source="https://www.gutenberg.org, or your own texts",
        sizes={
            "quick": {"train": 4_600_000, "validation": 300_000, "test": 230_000},
            "small": {"train": 36_000_000, "validation": 1_000_000, "test": 1_800_000},
            "full": {},
        },
    )

    def __init__(
        self,
        *,
        path: str | None = None,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
    ) -> None:
        self.path = path
        self.limits: dict[Split, int | None] = {"train": train, "validation": validation, "test": test}
        for split, limit in self.limits.items():
            if limit is not None and limit < 1:
                raise DataError(f"language: {split} must be at least 1 byte, not {limit}")

    def load(self, *, target: str | None = None, length: int | None = None) -> LanguageData:
        """`length` is that of a window; None: as the traits say, since a whole book is no sequence."""
        target, length = target or self.traits.targets[0], length or self.traits.length
        corpus = read_corpus(self.path)
        splits: dict[Split, Documents] = {
            split: Documents.of(beginnings(corpus.splits[split], self.limits[split])) for split in SPLITS
        }
        return LanguageData(
            splits=splits,
            target=target,
            length=length,
            about=self.about(corpus, QUESTIONS[target].text, length),
        )

    def about(self, corpus: Corpus, question: str, length: int) -> dict[str, Any]:
        return {
            "task": self.traits.name,
            "question": question,
            "data": corpus.name,
            "documents divided": corpus.divided,
            "documents left out": dict(corpus.left_out),
            "window": length,
        }
