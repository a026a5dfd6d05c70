import random
from itertools import pairwise

import pytest

from subquad.report.statistics import groups, interval, summary, told_apart


def test_fewer_than_three_seeds_give_no_interval_and_no_comparison() -> None:
    assert interval([0.7, 0.8]) is None
    assert told_apart({0: 0.1, 1: 0.1}, {0: 0.9, 1: 0.9}) is None
    assert summary({4: 0.7, 5: 0.8}, higher_is_better=True).interval is None


def test_one_seed_has_no_deviation() -> None:
    assert summary({0: 0.7}, higher_is_better=True).deviation is None


@pytest.mark.parametrize(("higher", "best"), [(True, 0.9), (False, 0.5)])
def test_the_best_is_the_largest_only_where_higher_is_better(higher: bool, best: float) -> None:
    assert summary({0: 0.5, 1: 0.9, 2: 0.7}, higher_is_better=higher).best == best


def test_a_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no score"):
        summary({}, higher_is_better=True)


def test_the_interval_holds_the_mean_and_is_the_same_every_time() -> None:
    values = [0.71, 0.70, 0.74, 0.69]
    first = interval(values)
    assert first is not None
    assert first.low < sum(values) / 4 < first.high
    assert interval(values) == first


def test_an_interval_of_equal_values_is_a_point() -> None:
    found = interval([0.7, 0.7, 0.7])
    assert found is not None
    assert found.low == pytest.approx(0.7)
    assert found.high == pytest.approx(0.7)


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_rows_are_told_apart_about_once_in_twenty(seeds: int) -> None:
    """A plain bootstrap would do so once in four with three seeds."""
    generator = random.Random(1)
    differences = ([generator.gauss(0, 1) for _ in range(seeds)] for _ in range(200))
    missed = sum(
        told_apart(dict(enumerate(each)), dict.fromkeys(range(seeds), 0.0)) or 0 for each in differences
    )
    assert 2 <= missed <= 22


def test_what_a_seed_does_to_both_rows_cancels() -> None:
    first = {0: 0.60, 1: 0.70, 2: 0.80}
    second = {seed: score + 0.01 + 0.0001 * seed for seed, score in first.items()}
    assert told_apart(first, second)


def test_only_seeds_that_both_rows_have_are_compared() -> None:
    assert told_apart({0: 0.1, 1: 0.1, 2: 0.1}, {2: 0.9, 3: 0.9, 4: 0.9}) is None


def test_rows_that_share_a_letter_are_exactly_those_not_told_apart() -> None:
    generator = random.Random(2)
    rows = {
        f"row {place}": {seed: 0.02 * place + generator.gauss(0, 0.01) for seed in range(5)}
        for place in range(6)
    }
    letters = groups(rows)
    for first in rows:
        for second in rows:
            if first != second:
                shared = bool(set(letters[first]) & set(letters[second]))
                assert shared == (not told_apart(rows[first], rows[second]))


def test_letters_follow_the_order_of_the_rows() -> None:
    rows = {
        name: {seed: height + 0.001 * seed for seed in range(3)}
        for name, height in (("x", 3), ("y", 2), ("z", 1))
    }
    assert groups(rows) == {"x": "a", "y": "b", "z": "c"}
    assert all(first < second for first, second in pairwise(groups(rows).values()))


def test_a_row_with_too_few_seeds_and_a_row_alone_have_no_letter() -> None:
    three = dict.fromkeys(range(3), 0.5)
    assert groups({"x": three, "y": {0: 0.5}}) == {"x": "", "y": ""}
    assert groups({"x": three, "y": three, "z": {0: 0.5}}) == {"x": "a", "y": "a", "z": ""}
