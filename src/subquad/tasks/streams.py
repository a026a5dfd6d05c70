"""Documents side by side, so that a model reads each of them from beginning to end with its state carried.

Each row of a batch reads one window; the row of the batch behind it goes on where it ended. When a document
ends, the next one begins in its row.
"""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

NONE = -1  # in the place of a window, where a row has read all that it is to read


class Schedule(NamedTuple):
    """Which window each row reads at each turn, and whether a new stream begins with it."""

    window: Int[np.ndarray, "turns rows"]
    begins: Bool[np.ndarray, "turns rows"]


def whole_documents(counts: Int[np.ndarray, " d"], *, rows: int) -> Schedule:
    """Documents of so many windows each, in at most so many rows, the longest first.

    Each goes whole to the row that is free first, so that rows end at about the same time.
    """
    first = counts.cumsum() - counts
    order = np.argsort(-counts, kind="stable")
    return schedule(first[order], counts[order], rows=rows)


def shuffled_documents(
    counts: Int[np.ndarray, " d"], *, rows: int, generator: np.random.Generator
) -> Schedule:
    """The same in an order that is drawn, and with documents cut that are longer than a row's share of all
    windows: every row then has something to read, be it of a single text.
    """
    share = -(-int(counts.sum()) // rows)
    pieces = -(-counts // share)
    document = np.arange(len(counts)).repeat(pieces)
    before = (np.arange(len(document)) - np.searchsorted(document, document)) * share
    first = (counts.cumsum() - counts)[document] + before
    length = np.minimum(counts[document] - before, share)
    order = generator.permutation(len(first))
    return schedule(first[order], length[order], rows=rows)


def schedule(first: Int[np.ndarray, " p"], length: Int[np.ndarray, " p"], *, rows: int) -> Schedule:
    """Pieces of so many windows, one after the other, each in the row that is free first."""
    free = [(0, row) for row in range(min(rows, len(first)))]
    placed = []
    for start, count in zip(first.tolist(), length.tolist(), strict=True):
        turn, row = free[0]
        placed.append((start, count, turn, row))
        heapq.heapreplace(free, (turn + count, row))
    window = np.full((max(free)[0], len(free)), NONE)
    begins = np.zeros(window.shape, bool)
    for start, count, turn, row in placed:
        window[turn : turn + count, row] = range(start, start + count)
        begins[turn, row] = True
    return Schedule(window, begins)
