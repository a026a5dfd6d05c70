"""Tasks whose examples are drawn from a seed, each one once: the same bytes on every machine.

They are drawn in blocks, and a block is a part: where the stream of random numbers stands behind it is all
that the next one depends on, beside which examples there are already.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool

from subquad.fields import Split
from subquad.tasks.errors import DataError
from subquad.tasks.preparable import DataPart, Preparable
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import SequenceData, Sequences, require_length, slices

BARREN = 50  # blocks in a row without a new example


class Generated(Preparable):
    """The base of such tasks.

    `sizes`: examples of each split.
    `seed`: of the generator.
    """

    sizes: dict[Split, int]
    seed: int

    @abstractmethod
    def block(self, bits: RandomBits, missing: int) -> Sequences:
        """The next examples, some of which there may be already; `missing` is how many there are not yet."""

    @abstractmethod
    def data(self, splits: dict[Split, Sequences]) -> SequenceData:
        """The dataset of these examples."""

    @abstractmethod
    def too_few(self, found: int, count: int) -> str:
        """What is said where only so many of `count` different examples can be found."""

    def stream(self) -> RandomBits:
        """Where the random numbers come from."""
        return RandomBits(self.seed)

    def parts(self, before: Iterable[DataPart] = ()) -> Iterator[DataPart]:
        bits, count = self.stream(), sum(self.sizes.values())
        known: set[bytes] = set()
        for part in before:
            unknown(sequences_of(part), known)
            bits.state = part.facts
        barren = 0
        while len(known) < count:
            drawn, found = self.block(bits, count - len(known)), len(known)
            new = np.flatnonzero(unknown(drawn, known))[: count - found]
            barren = 0 if len(new) else barren + 1
            if barren == BARREN:
                raise DataError(self.too_few(found, count))
            if len(new):
                yield DataPart(arrays_of(drawn, new), bits.state, done=(found + len(new)) / count)

    def dataset(self, made: DataPart, *, target: str | None, length: int | None) -> SequenceData:
        every = sequences_of(made)
        data = self.data({split: every.take(here) for split, here in slices(self.sizes).items()})
        require_length(data, length)
        return data


def unknown(part: Sequences, known: set[bytes]) -> Bool[np.ndarray, " s"]:
    """Which sequences are not known yet; they are from now on."""
    new = np.empty(len(part), bool)
    for place, (start, stop) in enumerate(zip(part.start.tolist(), part.stop.tolist(), strict=True)):
        before = len(known)
        known.add(blake2b(part.symbols[start:stop].tobytes(), digest_size=16).digest())
        new[place] = len(known) > before
    return new


def arrays_of(part: Sequences, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """The chosen sequences as arrays that may stand behind others of their kind."""
    kept = np.zeros(len(part), bool)
    kept[chosen] = True
    arrays = {
        "symbols": part.symbols[np.repeat(kept, part.lengths)],
        "length": part.lengths[kept],
        "answer": part.answer[kept],
    }
    return arrays if part.asked is None else {**arrays, "asked": part.asked[kept]}


def sequences_of(made: DataPart) -> Sequences:
    """The sequences of which `arrays_of` made arrays."""
    arrays = made.arrays
    return Sequences(arrays["symbols"], np.cumsum(arrays["length"]), arrays["answer"], arrays.get("asked"))
