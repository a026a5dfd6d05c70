import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binomtest, norm, ttest_rel

from subquad.report.groups import group_letters
from subquad.report.scores import compared
from subquad.report.statistics import Difference, Interval, SeedScores, difference, holm_corrected, summary

SEEDS = 3


def scores(parts: np.ndarray, group: np.ndarray | None = None) -> SeedScores:
    """Of (seeds, examples)."""
    return SeedScores(
        seeds={seed: float(part.mean()) for seed, part in enumerate(parts)},
        parts=dict(enumerate(parts)),
        group=np.arange(parts.shape[1]) if group is None else group,
    )


def seeds_alone(values: list[float]) -> SeedScores:
    return SeedScores(seeds=dict(enumerate(values)))


def interval(found: SeedScores, *, higher: bool = True, independent: float = math.inf) -> Interval:
    made = summary(found, higher_is_better=higher, independent=independent).interval
    assert made is not None
    return made


def rows(
    chance: np.random.Generator,
    *,
    size: int = 200,
    seeds: int = SEEDS,
    by_example: float = 0.0,
    by_seed: float = 0.0,
    by_both: float = 1.0,
    ahead: float = 0.0,
) -> tuple[SeedScores, SeedScores]:
    """Two rows that part by chance: the same in every seed, in every example, or in one of one alone."""
    shared = chance.normal(size=(seeds, size))

    def own() -> np.ndarray:
        parts = by_both * chance.normal(size=(seeds, size)) + by_example * chance.normal(size=size)
        return shared + parts + by_seed * chance.normal(size=(seeds, 1))

    return scores(own() + ahead), scores(own())


def differences(chance: np.random.Generator, trials: int, **how: float) -> Iterator[Difference]:
    for _ in range(trials):
        found = difference(*rows(chance, **how))  # pyright: ignore[reportArgumentType]
        assert found is not None
        yield found


@pytest.mark.parametrize(
    "how",
    [
        {"by_both": 1.0},
        {"by_example": 1.0, "by_both": 0.3},
        {"by_seed": 0.3, "by_both": 0.5},
        {"by_example": 0.3, "by_seed": 0.1},
        {"seeds": 1, "by_both": 1.0},
        {"seeds": 5, "by_seed": 0.1},
    ],
    ids=str,
)
def test_equal_rows_are_called_different_no_more_than_about_once_in_twenty(how: dict[str, float]) -> None:
    told = [found.p < 0.05 for found in differences(np.random.default_rng(1), 400, **how)]
    assert sum(told) <= 0.08 * len(told)


@pytest.mark.parametrize("how", [{"by_both": 1.0}, {"by_example": 0.5}, {"by_seed": 0.05}], ids=str)
def test_a_clear_difference_is_significant(how: dict[str, float]) -> None:
    told = [found.significant for found in differences(np.random.default_rng(2), 50, ahead=0.6, **how)]
    assert sum(told) >= 45


def test_what_is_hard_for_both_rows_cancels() -> None:
    chance = np.random.default_rng(3)
    hard = 10 * chance.normal(size=(SEEDS, 100))
    found = difference(scores(hard + 0.1 + 0.1 * chance.normal(size=(SEEDS, 100))), scores(hard))
    assert found is not None
    assert found.significant


def test_examples_of_one_entity_count_as_one() -> None:
    """A test set in which each example stands four times says no more than with each once."""
    chance = np.random.default_rng(4)
    once = chance.normal(size=(1, 50))
    first = summary(scores(once + 5), higher_is_better=False).interval
    copied = scores(np.repeat(once + 5, 4, 1), np.repeat(np.arange(50), 4))
    assert first is not None
    assert interval(copied, higher=False).low == pytest.approx(first.low)
    assert interval(scores(copied.parts[0][None]), higher=False).low > first.low


def test_without_examples_seeds_are_compared_as_by_student() -> None:
    first, second = [0.71, 0.74, 0.70, 0.73], [0.70, 0.71, 0.69, 0.71]
    found = difference(seeds_alone(first), seeds_alone(second))
    assert found is not None
    assert found.over == "seeds"
    assert found.p == pytest.approx(ttest_rel(first, second).pvalue)


def test_a_few_seeds_without_examples_say_nothing() -> None:
    assert difference(seeds_alone([0.1, 0.1]), seeds_alone([0.9, 0.9])) is None
    assert summary(seeds_alone([0.7, 0.8]), higher_is_better=True).interval is None
    assert difference(seeds_alone([0.1] * 3), SeedScores(seeds={2: 0.9, 3: 0.9, 4: 0.9})) is None


def test_one_seed_has_an_interval_over_examples_that_knows_of_no_other_seed() -> None:
    found = summary(scores(np.eye(50)[:1] + 0.5), higher_is_better=True)
    assert (found.over, found.deviation) == ("examples", None)
    assert found.interval is not None
    assert summary(scores(np.eye(50)[:3] + 0.5), higher_is_better=True).over == "examples and seeds"


def test_the_interval_of_an_accuracy_is_wilson_s() -> None:
    found = interval(scores((np.arange(400) < 360).astype(float)[None]))
    wilson = binomtest(360, 400).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=2e-3)


@pytest.mark.parametrize("right", [0, 1, 39, 40])
def test_an_interval_stays_within_the_metrics_range_and_has_a_width(right: int) -> None:
    found = interval(scores((np.arange(40) < right).astype(float)[None]), independent=40)
    assert 0 <= found.low < found.high <= 1
    assert right / 40 in found


def test_a_perfect_score_on_few_answers_is_less_sure_than_on_many() -> None:
    few, many = (interval(scores(np.ones((SEEDS, 200))), independent=size) for size in (20, 200))
    assert few.low < many.low < 1 == many.high
    assert few.low == pytest.approx(1 - 3 / 20, abs=0.02)  # the rule of three


def test_an_error_is_never_below_zero() -> None:
    chance = np.random.default_rng(5)
    found = interval(scores(chance.lognormal(sigma=3, size=(1, 20))), higher=False)
    assert 0 < found.low < found.high


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """For a test set of 100 examples and three seeds, each of which shifts the chance of being right."""
    chance = np.random.default_rng(6)
    truth = float(norm.cdf(1.5 / math.sqrt(1 + 0.2**2)))
    held = 0
    for _ in range(400):
        ease = chance.normal(1.5, 0.2, size=(SEEDS, 1))
        right = chance.normal(size=(SEEDS, 100)) < ease
        held += truth in interval(scores(right.astype(float)), independent=100)
    assert held >= 0.93 * 400


def test_only_a_baseline_that_was_found_once_stands_beside_every_seed() -> None:
    chance = np.random.default_rng(7)
    row, once = scores(1 + chance.normal(size=(SEEDS, 100))), scores(chance.normal(size=(1, 100)))
    found = compared({"row": row, "once": once}, {"baseline": once})
    assert found["row"]["baseline"].seeds == SEEDS
    assert found["row"]["baseline"].significant
    assert (found["row"]["once"].seeds, found["row"]["once"].over) == (1, "examples")
    assert found["once"]["row"] == found["row"]["once"].reversed()
    assert found["once"]["baseline"].value == 0


def test_rows_judged_on_other_examples_are_compared_by_seeds_alone() -> None:
    chance = np.random.default_rng(8)
    found = difference(scores(chance.normal(size=(SEEDS, 90))), scores(chance.normal(size=(SEEDS, 91))))
    assert found is not None
    assert found.over == "seeds"


def test_equal_rows_have_no_difference_and_few_examples_prove_none() -> None:
    row = scores(np.linspace(0, 1, 30)[None])
    same = difference(row, row)
    assert same is not None
    assert (same.value, same.p, same.significant) == (0, 1, False)
    few = difference(scores(np.ones((1, 4))), scores(np.zeros((1, 4))))
    assert few is not None
    assert few.p == 2**-3  # four signs
    assert not few.significant


@pytest.mark.parametrize("wins", [4, 5, 6, 8])
def test_few_examples_that_part_two_rows_say_about_what_their_signs_say(wins: int) -> None:
    """McNemar's test is that of the signs."""
    won = (np.arange(300) < wins).astype(float)
    found = difference(scores(won[None]), scores(np.zeros((1, 300))))
    assert found is not None
    assert binomtest(wins, wins).pvalue / 2 < found.p <= 1.5 * binomtest(wins, wins).pvalue


def test_over_all_pairs_probabilities_are_corrected_after_holm() -> None:
    found = difference(*rows(np.random.default_rng(9), ahead=1.0))
    assert found is not None
    names = "abcd"
    given = {
        (name, "z"): replace(found, p=p) for name, p in zip(names, (0.03, 0.001, 0.02, 0.9), strict=True)
    }
    made = holm_corrected(given)
    assert [made[name, "z"].corrected for name in names] == pytest.approx([0.06, 0.004, 0.06, 0.9])
    assert [made[name, "z"].p for name in names] == [0.03, 0.001, 0.02, 0.9]
    assert list(made) == list(given)


def test_a_difference_beyond_the_least_is_always_significant() -> None:
    chance = np.random.default_rng(10)
    pairs = {
        (str(place), "z"): found
        for place in range(60)
        if (found := difference(*rows(chance, ahead=0.02 * place)))
    }
    made = holm_corrected(pairs)
    assert {found.significant for found in made.values()} == {True, False}
    assert all(found.significant for found in made.values() if abs(found.value) > found.least)


@pytest.mark.parametrize(("higher", "best"), [(True, 0.9), (False, 0.5)])
def test_the_best_is_the_largest_only_where_higher_is_better(higher: bool, best: float) -> None:
    assert summary(seeds_alone([0.5, 0.9, 0.7]), higher_is_better=higher).best == best


def test_a_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no score"):
        summary(seeds_alone([]), higher_is_better=True)


def test_rows_share_a_letter_exactly_where_they_are_not_told_apart() -> None:
    chance = np.random.default_rng(11)
    names = [f"row {place}" for place in range(7)]
    apart = {
        (first, second) for first in names for second in names if first < second and chance.random() < 0.4
    }
    found = group_letters(names, apart)
    for first in names:
        for second in names:
            if first < second:
                assert bool(set(found[first]) & set(found[second])) == ((first, second) not in apart)


def test_letters_follow_the_order_of_the_rows() -> None:
    found = group_letters(["x", "y", "z"], {("x", "y"), ("z", "y"), ("x", "z")})
    assert found == {"x": "a", "y": "b", "z": "c"}
    assert all(first < second for first, second in pairwise(found.values()))
    assert group_letters(["x"], set()) == {"x": ""}
    assert group_letters(["x", "y"], set()) == {"x": "a", "y": "a"}
