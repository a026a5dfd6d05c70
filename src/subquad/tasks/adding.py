"""Adding: the sum of the two marked digits of a long sequence.

The task of Hochreiter and Schmidhuber (1997), section 5.4 of "Long Short-Term Memory", in which the numbers
are real. Here they are digits, so that the sum is a class: a token is a digit, marked or not, one is marked
in each half, and the last token is the question. The commonest sum, 9, gives 10 %.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from subquad.fields import Tokens
from subquad.objectives import Kinds
from subquad.task import TaskTraits
from subquad.tasks.kinds import ranges
from subquad.tasks.probes import Drawn, Probe, unasked
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import Sequences

DIGITS = 10
QUESTION = 2 * DIGITS  # behind the digits and the marked digits


class Adding(Probe):
    """See the module. Its options are those of every probe."""

    traits = TaskTraits(
        name="adding",
        description="the sum of the two marked digits of a sequence",
        targets=("sum",),
        unit="symbol",
        length=16_384,
        source="https://doi.org/10.1162/neco.1997.9.8.1735, made by subquad",
        revision=2,
        sizes={
            "quick": {"train": 8_000, "validation": 200, "test": 500, "tokens": 64},
            "small": {},
            "full": {"train": 100_000, "tokens": 1_024},
        },
    )

    def __init__(
        self,
        *,
        train: int = 20_000,
        validation: int = 500,
        test: int = 1_000,
        tokens: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(train=train, validation=validation, test=test, tokens=tokens, seed=seed)
        self.require(tokens >= 3, f"tokens must be at least 3, not {tokens}")

    @property
    def fields(self) -> Tokens:
        return Tokens(vocabulary=QUESTION + 1)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(map(str, range(2 * DIGITS - 1)))

    @property
    def about(self) -> Mapping[str, object]:
        return {"numbers": self.tokens - 1}

    def sort(self, part: Sequences) -> Mapping[str, Kinds]:
        """By how far before the question the first of the marked digits stands."""
        symbols = part.symbols.reshape(-1, self.tokens)
        first = ((symbols >= DIGITS) & (symbols < QUESTION)).argmax(1)
        return {"distance of the first digit": ranges(self.tokens - 1 - first[:, None])}

    def draw(self, bits: RandomBits, count: int) -> Drawn:
        symbols = bits.below(DIGITS, count, self.tokens)
        middle = (self.tokens - 1) // 2
        marked = np.stack(
            [bits.below(middle, count), middle + bits.below(self.tokens - 1 - middle, count)], axis=1
        )
        sums = np.take_along_axis(symbols, marked, 1).sum(1, keepdims=True)
        np.put_along_axis(symbols, marked, DIGITS + np.take_along_axis(symbols, marked, 1), axis=1)
        symbols[:, -1] = QUESTION
        return Drawn(symbols, np.full((count, 1), self.tokens - 1), sums)

    def solve(self, symbols: Sequence[int]) -> list[int]:
        answers = unasked(len(symbols))
        answers[-1] = sum(symbol - DIGITS for symbol in symbols if DIGITS <= symbol < QUESTION)
        return answers
