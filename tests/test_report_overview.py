"""All tasks at a glance: what is averaged is named, and what cannot be told apart shares a rank."""

from dataclasses import replace
from typing import Any

import pytest
import report_samples as made_up
from tasks_samples import BASELINES, REFUSAL, sample

from subquad.report.overview import Overview, Place, overview

ABLE = made_up.ROWS[:4]  # of which no run fails


def shown(*names: str, **options: Any) -> Overview:
    made = made_up.whole(*sample(*names, **options)).overview
    assert made is not None
    return made


def places(made: Overview, task: str) -> dict[str, Place]:
    """Those of one task, by mechanism."""
    column = [each.label for each in made.tasks].index(task)
    return {row.label: row.places[column] for row in made.rows}


def test_every_mechanism_stands_on_every_task_and_one_task_needs_no_overview() -> None:
    made = shown("transactions", "recall", "text")
    assert {row.label for row in made.rows} == {row["label"] for row in made_up.ROWS}
    assert all(len(row.places) == 3 for row in made.rows)
    assert made_up.whole(*sample("recall")).overview is None


def test_an_average_is_of_the_normalised_scores_of_the_tasks_that_it_names() -> None:
    made = shown("transactions", "recall", rows=ABLE)
    assert made.averaged == ["transactions", "recall"]
    for row in made.rows:
        normal = [
            (place.score.mean - BASELINES[task]["majority"]) / (1 - BASELINES[task]["majority"])
            for task, place in zip(made.averaged, row.places, strict=True)
            if place.score
        ]
        assert [place.normalised for place in row.places] == pytest.approx(normal)
        assert row.average == pytest.approx(sum(normal) / 2)


def test_of_an_error_the_part_that_is_gone_counts() -> None:
    place = places(shown("recall", "spending", rows=ABLE), "spending")["softmax"]
    assert place.score is not None
    assert place.normalised == pytest.approx(1 - place.score.mean / 40)
    assert place.best


def test_a_metric_without_a_perfect_score_is_left_out_of_the_average_by_name() -> None:
    tasks = made_up.whole(*sample("transactions", "recall", "spending", rows=ABLE)).tasks
    metric = replace(tasks[2].question.metric, name="bits", label="bits per byte")
    questions = [*(task.question for task in tasks[:2]), replace(tasks[2].question, metric=metric)]
    labels = [row["label"] for row in ABLE]
    made = overview(labels, [(each, task.rows) for each, task in zip(questions, tasks, strict=True)])
    assert made is not None
    assert made.averaged == ["transactions", "recall"]
    assert made.ranked == ["transactions", "recall", "spending"]
    assert made.notes["Left out"] == "spending of the average (no bits per byte is perfect)."


def test_a_task_that_some_mechanism_cannot_take_is_in_neither_mean() -> None:
    made = shown("transactions", "recall", "text", rows=ABLE, refused={"text": "linear"})
    assert made.ranked == made.averaged == ["transactions", "recall"]
    assert made.notes["Left out"] == "text of both means (linear cannot take it)."
    refused = places(made, "text")["linear"]
    assert (refused.score, refused.rank, refused.note) == (None, None, f"cannot: {REFUSAL}")
    assert all(row.average is not None and row.mean_rank is not None for row in made.rows)


def test_one_task_is_no_average() -> None:
    made = shown("transactions", "text", rows=ABLE, refused={"text": "linear"})
    assert made.averaged == []
    assert {row.average for row in made.rows} == {None}
    assert "Average" not in made.notes


@pytest.mark.parametrize("task", ["transactions", "recall", "spending"])
def test_ranks_of_a_task_add_up_to_those_of_as_many_places(task: str) -> None:
    ranks = [place.rank for place in places(shown(task, "text"), task).values() if place.score]
    assert sum(rank or 0.0 for rank in ranks) == len(ranks) * (len(ranks) + 1) / 2


def test_what_cannot_be_told_apart_shares_a_rank_and_is_best_together() -> None:
    recall = places(shown("transactions", "recall", rows=ABLE), "recall")
    assert recall["softmax"].rank == recall["infinity"].rank == 1.5
    assert [label for label, place in recall.items() if place.best] == ["softmax", "infinity"]
    assert recall["performer:features=64"].rank == 3
    assert recall["linear"].rank == 4


def test_nothing_below_the_baseline_is_best() -> None:
    text = places(shown("recall", "text", rows=ABLE), "text").values()
    assert {(place.best, place.beside_baseline) for place in text} == {(False, "below")}


def test_a_mechanism_without_a_score_has_no_means_and_comes_last() -> None:
    made = shown("transactions", "recall")
    assert (made.rows[-1].label, made.rows[-1].average, made.rows[-1].mean_rank) == ("dense", None, None)
    assert {place.note for place in made.rows[-1].places} == {"out of memory, 3 of 3 runs"}
    ranks = [row.mean_rank for row in made.rows[:-1]]
    assert ranks == sorted(rank or 0.0 for rank in ranks)


def test_fewer_than_three_seeds_are_said_to_tell_of_these_models_alone() -> None:
    assert shown("transactions", "recall", seeds=1).few_seeds
    assert not shown("transactions", "recall").few_seeds


def test_the_answer_says_what_to_take_on_each_task_and_what_is_good_on_all() -> None:
    answer = made_up.whole(*sample("transactions", "recall", "text", rows=ABLE)).answer
    clauses = answer.sentence.removesuffix(".").split("; ")
    assert clauses[0].startswith("On transactions take ")
    assert clauses[1].startswith("on recall take ")
    assert clauses[2] == "on text none clears the baseline"
    assert "softmax is among the best on both transactions and recall." in answer.reasons
    assert any(
        reason.startswith("Mean rank over transactions, recall and text: ") for reason in answer.reasons
    )


def test_a_bench_of_both_forms_tells_them_apart() -> None:
    rows = [made_up.row("linear"), made_up.row("linear", causal=True)]
    (bidirectional, causal) = (
        sample(name, rows=[row], seeds=1) for name, row in zip(("recall", "text"), rows, strict=True)
    )
    findings = made_up.whole(*bidirectional, *causal)
    assert [(curve.label, curve.form) for curve in findings.cost_curves] == [
        ("linear", "bidirectional"),
        ("linear (causal)", "causal"),
    ]
    assert {curve.label for curve in findings.cost_curves} <= findings.styles.keys()
