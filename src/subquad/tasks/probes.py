"""What all recall probes have in common: sequences drawn from a seed, asked at some of their tokens.

A probe says why a mechanism fails, where real data only say that it does: how many pairs its memory holds,
how far back it reaches, whether it finds a place, whether it adds up. Every sequence of a probe has the same
length, so that nothing is padding.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from subquad.fields import IGNORED, Events, Split, Tokens
from subquad.objectives import Kinds, TokenClassification
from subquad.tasks.errors import DataError
from subquad.tasks.generated import Generated
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import Reader, SequenceData, Sequences

DRAWN = 4096  # sequences at a time at most
SYMBOLS = 2**22  # and symbols


class Drawn(NamedTuple):
    """Some sequences, and what is asked of them."""

    symbols: Int[np.ndarray, "n t *c"]
    asked: Int[np.ndarray, "n q"]  # places, in order
    answer: Int[np.ndarray, "n q"]  # classes


class Probe(Generated):
    """The base of the probes. Options of all of them:

    `train`, `validation`, `test`: sequences of each split.
    `tokens`: of a sequence.
    `seed`: of the generator.
    """

    def __init__(self, *, train: int, validation: int, test: int, tokens: int, seed: int) -> None:
        self.sizes: dict[Split, int] = {"train": train, "validation": validation, "test": test}
        self.tokens, self.seed = tokens, seed
        self.require(min(self.sizes.values()) >= 1, "train, validation and test must be at least 1")
        longest = self.traits.length
        self.require(tokens <= longest, f"tokens must be at most {longest:,}, not {tokens:,}")
        self.require(seed >= 0, f"seed must be at least 0, not {seed}")

    @property
    def readers(self) -> Mapping[str, Reader]:
        """Baselines beyond "majority", by name."""
        return {}

    @property
    @abstractmethod
    def fields(self) -> Tokens | Events:
        """What a token holds."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """What may be answered."""

    @abstractmethod
    def draw(self, bits: RandomBits, count: int) -> Drawn:
        """So many sequences."""

    @abstractmethod
    def solve(self, symbols: Sequence[Any]) -> list[int]:
        """The class asked for at each token, `IGNORED` at others, worked out from the sequence alone."""

    @property
    @abstractmethod
    def about(self) -> Mapping[str, object]:
        """What makes it easy or hard, for the summary."""

    def sort(self, part: Sequences) -> Mapping[str, Kinds]:
        """In what the answers of a sequence differ, beside what the options set."""
        return {}

    def data(self, splits: dict[Split, Sequences]) -> SequenceData:
        return SequenceData(
            splits=splits,
            fields=self.fields,
            target=self.traits.targets[0],
            objective=TokenClassification(classes=self.classes),
            readers=self.readers,
            solve=self.solve,
            sort=self.sort,
            about={
                "task": self.traits.name,
                "question": self.traits.description,
                "tokens": self.tokens,
                **self.about,
                "seed": self.seed,
            },
        )

    def stream(self) -> RandomBits:
        """The first sequence of a seed is in no split."""
        bits = super().stream()
        self.draw(bits, 1)
        return bits

    def block(self, bits: RandomBits, missing: int) -> Sequences:
        drawn = self.draw(bits, min(DRAWN, 2 * missing, SYMBOLS // self.tokens))
        return flat(drawn, symbol_type(self.fields))

    def too_few(self, found: int, count: int) -> str:
        return f"{self.traits.name}: only {found:,} different sequences of {count:,} found"

    def require(self, holds: bool, complaint: str) -> None:
        """Raise `DataError` with what is wrong with the options."""
        if not holds:
            raise DataError(f"{self.traits.name}: {complaint}")


def flat(drawn: Drawn, kind: np.dtype) -> Sequences:
    count, length = drawn.symbols.shape[:2]
    stop = np.arange(1, count + 1) * length
    return Sequences(np.concatenate(drawn.symbols.astype(kind)), stop, drawn.answer, asked=drawn.asked)


def symbol_type(fields: Tokens | Events) -> np.dtype:
    """The smallest type that has all symbols."""
    largest = fields.vocabulary if isinstance(fields, Tokens) else max(fields.vocabularies)
    return np.min_scalar_type(largest - 1)


def unasked(length: int) -> list[int]:
    """Nothing asked at any token."""
    return [IGNORED] * length
