"""Metrics and baselines: what a score means, and what it has to clear."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from purchases import purchases

from subquad.fields import SPLITS
from subquad.metrics import contributions, higher_is_better, score
from subquad.objectives import OBJECTIVES
from subquad.task import baseline_result
from subquad.tasks.boosting import features
from subquad.tasks.events import EventData
from subquad.tasks.transactions import prepared

CHURN = prepared(purchases(), "churn", fingerprint="made up")


def asked(kind: str, metric: str, answer: Callable[[np.ndarray], np.ndarray]) -> EventData:
    """The churn data with another question, answered by the number of events in the last 40 days."""
    parts = {}
    for split in SPLITS:
        examples = CHURN.examples(split)
        recent = [
            (until - CHURN.histories.time[start:stop] <= 40).sum()
            for start, stop, until in zip(examples.start, examples.stop, examples.until, strict=True)
        ]
        parts[split] = replace(examples, target=answer(np.array(recent)))
    classes = {"binary": ("few", "many"), "multiclass": ("few", "some", "many")}
    named = {"classes": classes[kind]} if kind in classes else {}
    return replace(CHURN, objective=OBJECTIVES[kind](metric=metric, **named), **parts)


def reached(data: EventData, name: str, *, length: int = 1000) -> dict[str, Any]:
    return baseline_result(data, data.baseline(name, length=length, seed=0))


QUESTIONS = [
    asked("binary", "auc", lambda recent: (recent > 10).astype(np.int64)),
    asked("binary", "macro_f1", lambda recent: (recent > 10).astype(np.int64)),
    asked("multiclass", "accuracy", lambda recent: np.digitize(recent, [8, 11])),
    asked("regression", "mae", lambda recent: recent.astype(np.float64)),
]


@pytest.mark.parametrize("data", QUESTIONS, ids=lambda data: f"{data.objective.kind} {data.objective.metric}")
def test_boosting_clears_majority_where_frequency_is_the_answer(data):
    sign = 1 if data.objective.higher_is_better else -1
    (blind,) = reached(data, "majority")["test"].values()
    (seeing,) = reached(data, "boosting")["test"].values()
    assert sign * seeing > sign * blind + 0.1


def test_boosting_sees_no_more_than_the_last_events():
    data = CHURN
    tables = [
        features(data.histories, data.test, data.encoding.sizes, length=length, oldest=1000.0)
        for length in (1, 1000)
    ]
    assert (tables[0][:, 7] == 1).all()  # events
    assert (tables[1][:, 7] == data.test.stop - data.test.start).all()


def test_boosting_is_the_same_every_time():
    data = QUESTIONS[0]
    assert reached(data, "boosting", length=40) == reached(data, "boosting", length=40)


def test_features_tell_recency_frequency_amounts_and_counts():
    histories, examples = CHURN.histories, CHURN.test
    table = features(histories, examples, CHURN.encoding.sizes, length=1000, oldest=64.0)
    for row, start, stop, until in zip(table, examples.start, examples.stop, examples.until, strict=True):
        age = until - histories.time[start:stop]
        logs = histories.logs[start:stop].astype(float)
        amounts = np.expm1(logs[:, 0])
        visits = np.unique(histories.time[start:stop])
        expected = [age.max(), age.min(), until - visits[-2] if len(visits) > 1 else np.nan]
        np.testing.assert_allclose(row[:3], expected)
        windows = [32, 16, 8, 4, 2, 1]
        np.testing.assert_allclose(row[7:9], [len(age), len(visits)])
        np.testing.assert_allclose(row[9:15], [(age <= days).sum() for days in windows])
        for place, statistic in enumerate((logs.mean(0), logs.std(0), logs.min(0), logs.max(0), logs[-1])):
            np.testing.assert_allclose(row[15 + 2 * place : 17 + 2 * place], statistic, atol=1e-6)
        sums = [amounts.sum(), *(amounts[age <= days].sum() for days in windows)]
        np.testing.assert_allclose(row[25:32], sums)
        ids = histories.categorical[start:stop]
        sizes = CHURN.encoding.sizes
        counts = [np.bincount(ids[:, column], minlength=size) for column, size in enumerate(sizes)]
        np.testing.assert_array_equal(row[32:], np.concatenate(counts))


def test_majority_gives_what_a_constant_can():
    assert reached(QUESTIONS[0], "majority")["test"] == {"auc": 0.5}
    counts = np.bincount(QUESTIONS[2].train.target)
    commonest = (QUESTIONS[2].test.target == counts.argmax()).mean()
    assert reached(QUESTIONS[2], "majority")["test"] == {"accuracy": commonest}
    median = np.median(QUESTIONS[3].train.target)
    assert reached(QUESTIONS[3], "majority")["test"] == {
        "mae": pytest.approx(abs(QUESTIONS[3].test.target - median).mean())
    }


@pytest.mark.parametrize(
    ("metric", "target", "output", "expected"),
    [
        ("auc", [0, 0, 1, 1], [-5.0, 2.0, 1.0, 3.0], 0.75),
        ("accuracy", [0, 0, 1, 1], [0, 1, 1, 1], 0.75),
        ("accuracy", [0, 2, 1], [0, 1, 1], 2 / 3),
        ("macro_f1", [0, 0, 1, 1], [0, 1, 1, 1], (2 / 3 + 0.8) / 2),
        ("macro_f1", [0, 2, 1], [0, 1, 1], (1 + 2 / 3 + 0) / 3),
        ("mae", [1.0, -2.0], [2.0, 1.0], 2.0),
    ],
)
def test_a_metric_is_what_its_name_says(metric, target, output, expected):
    assert score(metric, np.array(target), np.array(output)) == pytest.approx(expected)


def test_a_default_metric_fits_its_kind():
    defaults = {kind: objective.metrics[0] for kind, objective in OBJECTIVES.items()}
    assert defaults == {"binary": "auc", "multiclass": "accuracy", "regression": "mae", "tokens": "accuracy"}
    for kind, metric in defaults.items():
        assert OBJECTIVES[kind].metric == metric
    assert [metric for metric in ("auc", "accuracy", "macro_f1", "mae") if not higher_is_better(metric)] == [
        "mae"
    ]


@pytest.mark.parametrize(
    ("metric", "target", "output", "said"),
    [
        ("auc", [0, 1], [0.0, np.nan], "1 are not finite"),
        ("mae", [0, 1], [np.inf, -np.inf], "2 are not finite"),
        ("auc", [1, 1], [0.0, 1.0], "every target is of one class"),
        ("aux", [0, 1], [0.0, 1.0], "unknown metric 'aux'"),
    ],
)
def test_a_score_that_cannot_be_is_refused(metric, target, output, said):
    with pytest.raises(ValueError, match=said):
        score(metric, np.array(target), np.array(output))


def made_up(metric, examples=60, classes=3):
    """Answers that are right more often than not, with ties among them."""
    chance = np.random.default_rng(0)
    if metric == "mae":
        target = chance.normal(size=examples)
        return target, target + chance.normal(size=examples)
    if metric == "auc":
        target = (np.arange(examples) % 4 == 0).astype(np.float32)
        return target, np.round(target + chance.normal(size=examples), 1)
    target = np.arange(examples) % classes
    return target, (np.eye(classes)[target] + chance.normal(size=(examples, classes))).argmax(1)


@pytest.mark.parametrize("metric", ["auc", "accuracy", "macro_f1", "mae"])
def test_the_mean_of_what_examples_add_is_the_metric(metric):
    target, output = made_up(metric)
    assert contributions(metric, target, output).mean() == pytest.approx(score(metric, target, output))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mae"])
def test_the_variance_of_what_examples_add_is_that_of_the_metric(metric):
    """By the jackknife: each example left out once."""
    target, output = made_up(metric, examples=600)
    n = len(target)
    without = [score(metric, np.delete(target, i), np.delete(output, i, 0)) for i in range(n)]
    jackknife = (n - 1) * np.var(without)
    assert contributions(metric, target, output).var() / n == pytest.approx(jackknife, rel=0.02)


def test_the_variance_of_auc_is_delong_s():
    """Equations (4) to (6) of DeLong, DeLong and Clarke-Pearson (1988), pair by pair."""
    target, output = made_up("auc")
    ill, well = output[target == 1], output[target == 0]
    won = (ill[:, None] > well) + 0.5 * (ill[:, None] == well)
    delong = won.mean(1).var(ddof=1) / len(ill) + won.mean(0).var(ddof=1) / len(well)
    parts = contributions("auc", target, output)
    ours = sum(
        ((parts[target == each] - won.mean()) ** 2).sum() * size / (size - 1)
        for each, size in ((1, len(ill)), (0, len(well)))
    )
    assert ours / len(target) ** 2 == pytest.approx(delong)


@pytest.mark.parametrize("data", QUESTIONS, ids=lambda data: f"{data.objective.kind} {data.objective.metric}")
def test_a_baseline_keeps_what_each_example_adds_and_whose_it_is(data):
    for baseline in (reached(data, "majority"), reached(data, "boosting", length=40)):
        kept = baseline["examples"]
        assert np.mean(kept["contribution"]) == pytest.approx(baseline["test"][data.objective.metric])
        same = np.equal.outer(kept["group"], kept["group"])
        np.testing.assert_array_equal(same, np.equal.outer(data.test.entity, data.test.entity))
