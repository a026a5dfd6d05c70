"""What cheap readers need for each byte of some texts, in bits: counts of bytes, and compressors.

A compressor packs each document by itself, and knows nothing of training. Its bits at a position are what the
document's beginning takes more when it reaches there, in steps that double. A header counts, as in a file.
"""

import gzip
import lzma
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from subquad.objectives import BYTES
from subquad.tasks.documents import Documents

COUNTED = 2**22  # bytes at a time
CONTEXTS = BYTES + 1  # a byte, or none before the first
FIRST_STEP = 256  # bytes

# of train and test, to the bits of each test byte
Reader = Callable[[Documents, Documents], Float[np.ndarray, " n"]]


def unigram(train: Documents, test: Documents) -> Float[np.ndarray, " n"]:
    """How often each byte value stands in training, and once more (Laplace)."""
    return -np.log2(frequencies(train)[test.symbols])


def frequencies(train: Documents) -> Float[np.ndarray, "256"]:
    counts = np.bincount(train.symbols, minlength=BYTES) + 1
    return counts / counts.sum()


def trigram(train: Documents, test: Documents) -> Float[np.ndarray, " n"]:
    """How often a byte follows the two before it in training; and as often as a context was followed by
    something new, what the shorter context says (Witten and Bell 1991).
    """
    counts = np.zeros(CONTEXTS**2 * BYTES, np.int64)
    for first in range(0, len(train.symbols), COUNTED):
        counts += np.bincount(trigrams(train, first), minlength=len(counts))
    by_two = counts.reshape(CONTEXTS**2, BYTES)
    contexts = [by_two.reshape(CONTEXTS, CONTEXTS, BYTES).sum(0), by_two]  # the shorter one first
    totals = [(following.sum(1), np.count_nonzero(following, axis=1)) for following in contexts]
    prior, bits = frequencies(train), []
    for first in range(0, len(test.symbols), COUNTED):
        context, byte = np.divmod(trigrams(test, first), BYTES)
        chance = prior[byte]
        for following, (total, new), which in zip(
            contexts, totals, (context % CONTEXTS, context), strict=True
        ):
            share = new[which] / np.maximum(total + new, 1)[which]
            seen = following[which, byte] / np.maximum(total + new, 1)[which]
            chance = np.where(new[which], seen + share * chance, chance)
        bits.append(-np.log2(chance))
    return np.concatenate(bits)


def trigrams(texts: Documents, first: int) -> Int[np.ndarray, " n"]:
    """A number for each byte with the two before it in its document, of `COUNTED` bytes from `first` on."""
    begins = max(0, first - 2)
    byte = texts.symbols[begins : first + COUNTED].astype(np.int64)
    last, before = (np.concatenate([np.full(gap, BYTES), byte[:-gap]])[: len(byte)] for gap in (1, 2))
    starts = texts.start - begins
    for start in starts[(starts >= 0) & (starts < len(byte))]:
        last[start] = BYTES
        before[start : start + 2] = BYTES
    return ((before * CONTEXTS + last) * BYTES + byte)[first - begins :]


def packed(compress: Callable[[bytes], bytes]) -> Reader:
    def read(train: Documents, test: Documents) -> Float[np.ndarray, " n"]:
        bits = []
        for text in test.texts:
            steps = range((len(text) - 1).bit_length() - FIRST_STEP.bit_length() + 1)
            ends = [*(FIRST_STEP << step for step in steps), len(text)]
            sizes = [len(compress(text[:end])) for end in ends]
            more, reach = np.diff(sizes, prepend=0), np.diff(ends, prepend=0)
            bits.append(np.repeat(8 * more / reach, reach))
        return np.concatenate(bits)

    return read


gzipped = packed(gzip.compress)
xzipped = packed(lzma.compress)
