"""Which runs learnt anything, and after how many examples."""

from typing import Any

import numpy as np
import pytest
import report_samples as made_up
from scipy.stats import binomtest

from subquad.records import Record
from subquad.report.findings import Findings
from subquad.report.page import render
from subquad.report.question import question_of
from subquad.report.statistics import SeedScores, reach
from subquad.report.success import Chance, Success, chance_of, success


def answered(*right: int, of: int, each: int = 1) -> SeedScores:
    """Runs, one a seed, with so many right answers; `each` copies of an example are of one entity."""
    parts = {seed: np.repeat(np.arange(of) < count, each).astype(float) for seed, count in enumerate(right)}
    seeds = {seed: float(part.mean()) for seed, part in parts.items()}
    return SeedScores(seeds=seeds, parts=parts, group=np.repeat(np.arange(of), each))


def chance(right: int, *, of: int, each: int = 1) -> Chance:
    known = answered(right, of=of, each=each)
    reached = reach(known, 0)
    assert reached is not None
    return Chance(level=known.seeds[0], reach=reached, fewer=4.0, higher_is_better=True)


@pytest.mark.parametrize(("level", "of"), [(500, 1000), (170, 1000), (60, 100), (1000, 2000)])
def test_a_run_is_above_chance_where_a_binomial_test_says_so(level: int, of: int) -> None:
    majority = chance(level, of=of)
    for right in range(level, of):
        found = success(answered(right, of=of), majority)
        p = binomtest(right, of, level / of, alternative="greater").pvalue
        assert found
        assert found.above == (p < 0.025) or 0.01 < p < 0.06  # at the edge the normal law is not exact


def test_a_seed_that_guesses_is_above_chance_one_time_in_forty() -> None:
    generator, majority = np.random.default_rng(0), chance(200, of=400)
    right = generator.binomial(400, 0.5, size=2000).tolist()
    found = success(answered(*right, of=400), majority)
    assert found
    assert 0.01 < found.above / found.runs < 0.035


def test_of_two_modes_the_upper_has_a_mean_of_its_own() -> None:
    found = success(answered(505, 660, 494, 640, of=1000), chance(500, of=1000))
    assert found
    assert (found.runs, found.above, found.stuck) == (4, 2, 2)
    assert found.mean == pytest.approx(0.65)


def test_none_above_chance_has_no_mean() -> None:
    assert success(answered(505, 494, of=1000), chance(500, of=1000)) == Success(runs=2, above=0, mean=None)


def test_examples_of_one_entity_count_once() -> None:
    assert success(answered(56, of=100, each=10), chance(50, of=100, each=10)) == success(
        answered(56, of=100), chance(50, of=100)
    )
    found = success(answered(560, of=1000), chance(500, of=1000))
    assert found
    assert found.above == 1


def test_a_run_that_is_always_right_is_above_chance() -> None:
    found = success(answered(100, of=100), chance(50, of=100))
    assert found
    assert found.above == 1


def records(metric: str = "accuracy", **options: Any) -> tuple[dict[str, Any], list[Record]]:
    setting = made_up.comparison(made_up.ROWS[:3], metric=metric)
    return setting, made_up.sample(setting, **options)


def test_of_an_error_less_is_above() -> None:
    setting, made = records("mae", quality={"softmax": 1.0, "linear": 3.0}, baselines={"majority": 2.0})
    rows = {row.label: row.success for row in made_up.findings(setting, made).rows}
    assert rows["softmax"]
    assert rows["linear"]
    assert (rows["softmax"].above, rows["linear"].above) == (3, 0)


def test_without_examples_or_majority_nothing_is_said() -> None:
    setting, made = records()
    older = made_up.findings(setting, made_up.older(made))
    assert {row.success for row in older.rows} == {None}
    assert older.budgets
    assert {row.takes_off for row in older.budgets.rows} == {()}
    setting, made = records(baselines={"boosting": 0.6})
    assert {row.success for row in made_up.findings(setting, made).rows} == {None}


def with_curve(seed: int, *validation: float) -> Findings:
    """One run alone, validated so often at equal distances within 6,400 examples."""
    setting, made = records()
    for record in made:
        spec = record["spec"]
        if record["kind"] == "fit" and spec["mechanism"]["attention"] == "softmax" and spec["seed"] == seed:
            record["result"]["curve"] = [
                {
                    "step": 400 * place // len(validation),
                    "examples": 6_400 * place // len(validation),
                    "loss": 0.5,
                    "validation": {"accuracy": value, "loss": 0.5},
                }
                for place, value in enumerate(validation, 1)
            ]
        elif record["kind"] == "fit":
            record["status"], record["result"], record["measured"] = "failed", {}, {}
    return made_up.findings(setting, made)


def test_scores_are_those_after_a_quarter_half_and_the_whole() -> None:
    found = with_curve(1, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 0.57, 0.58).budgets
    assert found
    assert found.examples == (1_600, 3_200, 6_400)
    assert found.rows[0].scores == ((0.52,), (0.54,), (0.58,))


def test_few_validations_give_fewer_budgets_and_never_one_twice() -> None:
    found = with_curve(1, 0.51, 0.52).budgets
    assert found
    assert found.examples == (3_200, 6_400)


def test_a_run_takes_off_where_it_is_first_clearly_above_the_majority() -> None:
    setting, made = records()
    majority = chance_of(question_of(setting), made)
    assert majority
    little, much = 0.5 + 0.9 * majority.reach, 0.5 + 1.5 * majority.reach
    for course, expected in (
        ((0.5, little, much, 0.5), 4_800),
        ((much, much, much, much), 1_600),
        ((0.5, little, 0.4, little), None),
    ):
        found = with_curve(1, *course).budgets
        assert found
        assert found.rows[0].takes_off == (expected,)


def test_the_page_says_how_many_runs_took_off_and_when() -> None:
    page = render(made_up.alone(with_curve(1, 0.5, 0.5, 0.5, 0.5)))
    assert "<td>not within this budget</td>" in page
    assert "1,600 (0.16 epochs)" in page
    setting, made = records(quality={"linear": 0.4})
    page = render(made_up.whole((setting, made)))
    assert "3 of 3 not above majority" in page
    assert "Not above the majority: linear, 3 of 3 runs." in page
