"""Multi-query associative recall: pairs of a key and a value, then keys again, whose values are asked for.

Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models" (2023, arXiv:2312.04927),
section 4 and the generator of its authors (github.com/HazyResearch/zoology, zoology/data/multiquery_ar.py).
A sequence has no key and no value twice. Each key comes again once behind the pairs, nearer places being
more likely: with probability in proportion to 1 / s for the s-th place (theirs is s^-0.99). There its value
is asked for. Where no key stands, nothing does; the authors' later version puts random symbols there.

With them key and value are two tokens, and a model has to bring them together before it can recall: a short
convolution, or a layer of attention that takes long to learn. Here a token holds both (`joined`), so that
what is left is recall, and minutes suffice.

How many pairs a mechanism recalls is how much its memory holds: a recurrence of a fixed size fails as they
grow in number, a window as they move out of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from subquad.fields import Events
from subquad.objectives import Kinds
from subquad.task import TaskTraits
from subquad.tasks.kinds import ranges
from subquad.tasks.probes import Drawn, Probe, unasked
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import Reader, Sequences


class Recall(Probe):
    """See the module. A token has two columns, key and value, and 0 where it has none of them.

    Options beside those of every probe:

    `pairs`: of key and value in a sequence; each is asked for once.
    `keys`: different ones that there are, and as many values.
    `joined`: whether a key and its value are one token. False: two, as in the paper.
    """

    traits = TaskTraits(
        name="recall",
        description="the values of many keys, of those that stood before (multi-query associative recall)",
        targets=("value",),
        unit="symbol",
        length=16_384,
        source="https://arxiv.org/abs/2312.04927, made by subquad",
        revision=2,
        sizes={
            "quick": {"train": 8_000, "validation": 200, "test": 500, "tokens": 64, "pairs": 8, "keys": 32},
            "small": {},
            "full": {"train": 100_000, "tokens": 512, "pairs": 64, "keys": 4_096},
        },
    )

    def __init__(
        self,
        *,
        train: int = 20_000,
        validation: int = 500,
        test: int = 1_000,
        tokens: int = 128,
        pairs: int = 16,
        keys: int = 64,
        joined: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(train=train, validation=validation, test=test, tokens=tokens, seed=seed)
        self.pairs, self.keys = pairs, keys
        self.width = 1 if joined else 2  # tokens of a pair, and from one place for a question to the next
        self.require(keys >= 2, f"keys must be at least 2, not {keys}")
        self.require(1 <= pairs <= keys, f"pairs must be 1 to the number of keys, {keys}, not {pairs}")
        least = 2 * self.width * pairs
        self.require(tokens >= least, f"tokens must be at least {least} for {pairs} pairs, not {tokens}")

    @property
    def fields(self) -> Events:
        return Events(vocabularies=(self.keys + 1, self.keys + 1), numeric=0)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"value {number}" for number in range(1, self.keys + 1))

    @property
    def readers(self) -> Mapping[str, Reader]:
        return {"first value": self.first_value}

    @property
    def about(self) -> Mapping[str, object]:
        return {"pairs": self.pairs, "keys": self.keys, "joined": self.width == 1}

    def sort(self, part: Sequences) -> Mapping[str, Kinds]:
        """By how many tokens before the question its key stood."""
        assert part.asked is not None
        keys = part.symbols[:, 0].reshape(-1, self.tokens)
        known = keys[:, 0 : self.width * self.pairs : self.width]
        asked = np.take_along_axis(keys, part.asked, 1)
        place = (known[:, None] == asked[:, :, None]).argmax(2)
        return {"distance": ranges(part.asked - self.width * place)}

    def draw(self, bits: RandomBits, count: int) -> Drawn:
        keys = bits.sample(count, self.pairs, among=self.keys)
        values = bits.sample(count, self.pairs, among=self.keys)
        symbols = np.zeros((count, self.tokens, 2), np.int64)
        context = self.width * self.pairs
        symbols[:, 0 : context : self.width, 0] = 1 + keys
        symbols[:, self.width - 1 : context : self.width, 1] = 1 + values
        places = (self.tokens - context) // self.width
        place = bits.weighted_sample(count, self.pairs, weights=1 / np.arange(1, places + 1))
        asked = context + self.width * place
        np.put_along_axis(symbols[:, :, 0], asked, 1 + keys, axis=1)
        order = asked.argsort(1)
        return Drawn(symbols, np.take_along_axis(asked, order, 1), np.take_along_axis(values, order, 1))

    def solve(self, symbols: Sequence[Sequence[int]]) -> list[int]:
        known: dict[int, int] = {}
        answers = unasked(len(symbols))
        for place, (key, _) in enumerate(symbols):
            if key in known:
                answers[place] = known[key] - 1
            elif key:
                known[key] = symbols[place + self.width - 1][1]
        return answers

    def first_value(self, train: Sequences, test: Sequences) -> np.ndarray:
        """The first pair's value, whatever is asked: right for one key of all."""
        first = test.symbols[test.start + self.width - 1, 1].astype(np.int64) - 1
        return np.repeat(first[:, None], test.answer.shape[1], axis=1)
