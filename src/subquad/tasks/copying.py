"""Copying: some symbols, a long blank, a signal, and then the same symbols in their order.

The task of Hochreiter and Schmidhuber (1997) as Arjovsky, Shah and Bengio give it (2016, arXiv:1511.06464,
section 4.2): eight symbols, ten of them to copy, a blank of `delay` - 1 tokens, the signal, ten blanks at
which the symbols are asked for. They count every token; here the ten count, since blanks are no answer.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from subquad.fields import Tokens
from subquad.objectives import Kinds
from subquad.task import TaskTraits
from subquad.tasks.kinds import each
from subquad.tasks.probes import Drawn, Probe, unasked
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import Sequences


class Copying(Probe):
    """See the module. Options beside those of every probe:

    `items`: symbols to copy.
    `alphabet`: different symbols that there are.
    """

    traits = TaskTraits(
        name="copying",
        description="the symbols with which the sequence began, in their order, after a long blank",
        targets=("symbol",),
        unit="symbol",
        length=16_384,
        source="https://arxiv.org/abs/1511.06464, made by subquad",
        sizes={
            "quick": {"train": 8_000, "validation": 200, "test": 500, "tokens": 64},
            "small": {},
            "full": {"train": 100_000, "tokens": 1_020},
        },
    )

    def __init__(
        self,
        *,
        train: int = 20_000,
        validation: int = 500,
        test: int = 1_000,
        tokens: int = 128,
        items: int = 10,
        alphabet: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(train=train, validation=validation, test=test, tokens=tokens, seed=seed)
        self.items, self.alphabet = items, alphabet
        self.require(items >= 1 and alphabet >= 2, "items must be at least 1 and alphabet at least 2")
        least = 2 * items + 1
        self.require(tokens >= least, f"tokens must be at least {least} for {items} items, not {tokens}")

    @property
    def fields(self) -> Tokens:
        return Tokens(vocabulary=self.alphabet + 2)

    @property
    def blank(self) -> int:
        return self.alphabet

    @property
    def signal(self) -> int:
        return self.alphabet + 1

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.alphabet)))

    @property
    def about(self) -> Mapping[str, object]:
        return {"items": self.items, "alphabet": self.alphabet, "distance": self.tokens - self.items}

    def sort(self, part: Sequences) -> Mapping[str, Kinds]:
        return {"item": each(np.broadcast_to(np.arange(1, self.items + 1), part.answer.shape))}

    def draw(self, bits: RandomBits, count: int) -> Drawn:
        items = bits.below(self.alphabet, count, self.items)
        symbols = np.full((count, self.tokens), self.blank)
        symbols[:, : self.items] = items
        symbols[:, -self.items - 1] = self.signal
        asked = np.tile(np.arange(self.tokens - self.items, self.tokens), (count, 1))
        return Drawn(symbols, asked, items)

    def solve(self, symbols: Sequence[int]) -> list[int]:
        signal = symbols.index(self.signal)
        items = [symbol for symbol in symbols[:signal] if symbol != self.blank]
        answers = unasked(len(symbols))
        answers[signal + 1 :] = items
        return answers
