"""A needle in a haystack: the symbol behind a mark, so many tokens before the end, among random symbols.

After Kamradt's test of language models (2023, github.com/gkamradt/LLMTest_NeedleInAHaystack), made of
symbols: the mark stands `distance` tokens before the last one, where the symbol behind the mark is asked for.
What a window or a memory does not reach cannot be answered better than by chance.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from subquad.fields import Tokens
from subquad.task import TaskTraits
from subquad.tasks.probes import Drawn, Probe, unasked
from subquad.tasks.random_bits import RandomBits


class Needle(Probe):
    """See the module. Options beside those of every probe:

    `distance`: tokens from the mark to the question.
    `alphabet`: different symbols that there are.
    """

    traits = TaskTraits(
        name="needle",
        description="the symbol behind a mark, at a set distance, among random symbols",
        targets=("symbol",),
        unit="symbol",
        length=16_384,
        source="https://github.com/gkamradt/LLMTest_NeedleInAHaystack, made by subquad",
        sizes={
            "quick": {"train": 8_000, "validation": 200, "test": 500, "tokens": 128, "distance": 96},
            "small": {},
            "full": {"train": 100_000, "tokens": 4_096, "distance": 3_072},
        },
    )

    def __init__(
        self,
        *,
        train: int = 20_000,
        validation: int = 500,
        test: int = 1_000,
        tokens: int = 256,
        distance: int = 192,
        alphabet: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(train=train, validation=validation, test=test, tokens=tokens, seed=seed)
        self.distance, self.alphabet = distance, alphabet
        self.require(2 <= distance < tokens, f"distance must be 2 to {tokens - 1}, not {distance}")
        self.require(alphabet >= 2, f"alphabet must be at least 2, not {alphabet}")

    @property
    def fields(self) -> Tokens:
        return Tokens(vocabulary=self.alphabet + 2)

    @property
    def mark(self) -> int:
        return self.alphabet

    @property
    def question(self) -> int:
        return self.alphabet + 1

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.alphabet)))

    @property
    def about(self) -> Mapping[str, object]:
        return {"distance": self.distance, "alphabet": self.alphabet}

    def draw(self, bits: RandomBits, count: int) -> Drawn:
        symbols = bits.below(self.alphabet, count, self.tokens)
        symbols[:, -1] = self.question
        symbols[:, -1 - self.distance] = self.mark
        asked = np.full((count, 1), self.tokens - 1)
        return Drawn(symbols, asked, symbols[:, -self.distance][:, None])

    def solve(self, symbols: Sequence[int]) -> list[int]:
        answers = unasked(len(symbols))
        answers[-1] = symbols[symbols.index(self.mark) + 1]
        return answers
