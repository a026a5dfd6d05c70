"""A small task of pairs that its oracle solves: are two words of random letters anagrams?"""

from collections.abc import Sequence

import numpy as np

from subquad.fields import SPLITS, Pair, Tokens
from subquad.objectives import BinaryClassification
from subquad.task import Task, TaskTraits
from subquad.tasks.sequences import SequenceData, Sequences

LETTERS = 6
WORDS = {"train": 120, "validation": 40, "test": 40}


class Anagrams(Task):
    """Words of 3 to 9 letters, the first of which is letter 0 in a third of them."""

    traits = TaskTraits(
        name="anagrams",
        description="are two words anagrams?",
        targets=("anagram",),
        unit="letter",
        length=9,
        source="made by the tests",
    )

    def load(self, *, target: str | None = None, length: int | None = None) -> SequenceData:
        chance = np.random.default_rng(0)
        return SequenceData(
            splits={split: pairs(WORDS[split], chance) for split in SPLITS},
            fields=Pair(side=Tokens(vocabulary=LETTERS)),
            target="anagram",
            objective=BinaryClassification(classes=("no", "yes"), metric="accuracy"),
            readers={},
            solve=lambda sides: int(anagrams(sides)),
            about={"question": "are the two anagrams?"},
        )


def pairs(count: int, chance: np.random.Generator) -> Sequences:
    """Every second pair is one of anagrams; of the others, most differ in length, too."""
    words: list[np.ndarray] = []
    for number in range(count):
        word = chance.integers(0, LETTERS, chance.integers(3, 10))
        other = chance.integers(0, LETTERS, chance.integers(3, 10))
        words += [word, chance.permutation(word if number % 2 else other)]
    pair = np.arange(2 * count).reshape(-1, 2)
    answer = np.array([anagrams([words[place].tolist() for place in sides]) for sides in pair], np.int64)
    return Sequences(np.concatenate(words), np.cumsum([len(word) for word in words]), answer, pair=pair)


def anagrams(sides: Sequence[list[int]]) -> bool:
    first, second = sides
    return sorted(first) == sorted(second)
