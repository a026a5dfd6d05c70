"""Documents side by side: every window once, each behind the one before it."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from subquad.tasks.documents import Documents
from subquad.tasks.windows import Windows, ask_masked, ask_next

WINDOW = 16
LENGTHS = (100, 3, 37, 64, 16, 1)
ORDER = {"size": 3, "seed": 0, "epoch": 0}


def windows_of(*lengths: int) -> Windows:
    chance = np.random.default_rng(0)
    return Windows(Documents.of([chance.bytes(length) for length in lengths]), WINDOW)


WINDOWS = windows_of(*LENGTHS)


def read(windows: Windows, *, shuffle: bool, **order: int) -> list[list[tuple[int, bool]]]:
    """Row by row, the windows that it reads, and whether a stream begins with each."""
    rows: dict[int, list[tuple[int, bool]]] = {}
    for batch in windows.streams(ask_next, **{**ORDER, **order}, shuffle=shuffle):
        assert batch.begins is not None
        for row, (place, new) in enumerate(zip(batch.example.tolist(), batch.begins.tolist(), strict=True)):
            rows.setdefault(row, []).append((place, new))
    return [rows[row] for row in sorted(rows)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 50])
def test_every_window_is_read_once_and_behind_the_one_before_it(size: int, shuffle: bool):
    rows = read(WINDOWS, size=size, shuffle=shuffle)
    real = [[each for each in row if each[0] >= 0] for row in rows]
    assert sorted(place for row in real for place, _ in row) == list(range(len(WINDOWS)))
    for padded, row in zip(rows, real, strict=True):
        assert padded[: len(row)] == row, "a row went on after it had ended"
        assert row[0][1]
        for (before, _), (place, new) in pairwise(row):
            assert new or place == before + 1
            assert new or WINDOWS.document[place] == WINDOWS.document[before]
    if not shuffle:
        began = {place for row in real for place, new in row if new}
        assert began == set(np.flatnonzero(WINDOWS.offset == 0).tolist())


@pytest.mark.parametrize("ask", [ask_next, ask_masked])
def test_streams_ask_for_the_same_bytes_as_single_windows(ask: Any):
    def asked(batches: Any) -> dict[int, tuple[list[int], list[int], int]]:
        return {
            int(place): (ids[real].tolist(), target[real].tolist(), int(offset))
            for batch in batches
            for place, ids, target, real, offset in zip(
                batch.example, batch.inputs[0], batch.target, batch.valid, batch.offset, strict=True
            )
            if place >= 0
        }

    alone = WINDOWS.batches(ask, **ORDER, length=WINDOW, shuffle=True)
    assert asked(WINDOWS.streams(ask, **ORDER, shuffle=True)) == asked(alone)


def test_in_training_a_single_text_fills_every_row_and_in_tests_it_stays_whole():
    windows = windows_of(32 * WINDOW)
    training = read(windows, size=4, shuffle=True)
    assert [len(row) for row in training] == [8, 8, 8, 8]
    assert sorted(row[0][0] for row in training) == [0, 8, 16, 24]
    assert len(read(windows, size=4, shuffle=False)) == 1


def test_the_order_of_streams_goes_by_seed_and_epoch_alone():
    def order(**options: int) -> Any:
        return read(WINDOWS, shuffle=True, **options)

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert order(seed=1, epoch=2) != order(seed=1, epoch=3)
    assert order(seed=1, epoch=2) != order(seed=2, epoch=2)


def test_a_batch_of_no_row_is_refused():
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        next(WINDOWS.streams(ask_next, size=0, seed=0, epoch=0, shuffle=False))
