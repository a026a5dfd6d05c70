"""What is made of a series of figures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subquad.measure.scaling import Crossover, crossover, exponent

LENGTHS = [512, 1024, 2048, 4096, 8192]


@given(power=st.floats(-3, 3), scale=st.floats(1e-6, 1e6), count=st.integers(3, 9))
def test_the_exponent_of_a_power_is_the_power(power, scale, count):
    lengths = [100 * 2**i for i in range(count)]
    assert exponent(lengths, [scale * n**power for n in lengths]) == pytest.approx(power, abs=1e-6)


def test_fixed_costs_at_short_lengths_do_not_flatten_the_exponent():
    assert exponent(LENGTHS, [50, 50, 2.0**2, 4.0**2, 8.0**2]) == pytest.approx(2)


def test_the_exponent_is_a_fit_and_not_two_points():
    assert exponent([1, 2, 4], [1, 8, 4]) == pytest.approx(1)
    assert exponent([1, 2, 4, 8, 16, 32, 64], [9, 9, 9, 1, 2, 8, 8]) == pytest.approx(1.1)


@pytest.mark.parametrize("count", [1, 2])
def test_an_exponent_needs_three_lengths(count):
    with pytest.raises(ValueError, match=f"at least 3 lengths, not {count}"):
        exponent(LENGTHS[:count], [1.0, 2.0][:count])


@given(where=st.floats(513, 8191), power=st.floats(0.5, 1.9))
def test_power_laws_cross_where_they_are_equal(where, power):
    ours = [(n / where) ** power for n in LENGTHS]
    found = crossover(LENGTHS, ours, [(n / where) ** 2 for n in LENGTHS])
    assert found is not None
    assert not found.at_or_below
    assert found.length == pytest.approx(where)


def test_only_the_last_crossing_counts():
    found = crossover(LENGTHS, [1, 1, 4, 4, 4], [2, 2, 2, 8, 8])
    assert found is not None
    assert 2048 < found.length < 4096


def test_what_is_faster_everywhere_crosses_at_or_below_the_shortest_length():
    found = crossover(LENGTHS, [1] * 5, [2] * 5)
    assert found == Crossover(512, at_or_below=True)
    assert str(found) == "≤ 512"


def test_what_is_slower_at_the_longest_length_does_not_cross():
    assert crossover(LENGTHS, [1, 1, 1, 1, 3], [2] * 5) is None


def test_as_fast_is_not_faster():
    assert crossover(LENGTHS, [2] * 5, [2] * 5) is None


def test_the_order_of_the_lengths_does_not_matter():
    ours, theirs = [3.0, 4.0, 5.0, 6.0, 7.0], [1.0, 2.0, 4.0, 8.0, 16.0]
    backwards = crossover(LENGTHS[::-1], ours[::-1], theirs[::-1])
    assert backwards == crossover(LENGTHS, ours, theirs)
    assert exponent(LENGTHS[::-1], ours[::-1]) == exponent(LENGTHS, ours)


def test_a_crossover_reads_as_a_length():
    assert str(Crossover(1829.6)) == "1,830"


@pytest.mark.parametrize(
    ("lengths", "values", "told"),
    [
        ([1, 2], [1.0], "one value per length, not 1 for 2"),
        ([], [], "one value per length"),
        ([2, 2], [1.0, 1.0], "each length once"),
        ([1, 2], [0.0, 1.0], "positive and finite"),
        ([1, 2], [math.nan, 1.0], "positive and finite"),
    ],
)
def test_a_series_that_has_no_logarithms_is_refused(lengths, values, told):
    with pytest.raises(ValueError, match=told):
        exponent(lengths, values)
