"""Kinds of answers: ranges of numbers, what tasks name, and the metric over each."""

from typing import Any

import numpy as np
import pytest
from own_sample import write

from subquad.objectives import BinaryClassification, Classification, Kinds, Regression, TokenClassification
from subquad.task import baseline_result
from subquad.tasks.adding import Adding
from subquad.tasks.copying import Copying
from subquad.tasks.custom import Custom
from subquad.tasks.events import EventData
from subquad.tasks.kinds import RANGES, each, ranges
from subquad.tasks.listops import END, ListOps
from subquad.tasks.needle import Needle
from subquad.tasks.recall import Recall
from subquad.testing.task import Case, check_kinds_fit_the_answers

FEW: dict[str, Any] = {"train": 40, "validation": 20, "test": 60}
LISTOPS = ListOps(**{**FEW, "train": 300}, above=5, below=60, depth=4)


CHANCE = np.random.default_rng(0)
SAMPLES = (
    CHANCE.integers(0, 1000, 300),
    CHANCE.integers(0, 3, (50, 4)),
    np.minimum(CHANCE.integers(1, 2000, 400), 1000),
    np.array([5, 5, 5, 5, 9]),
    np.array([7]),
)
TASKS = (LISTOPS, Recall(**FEW), Recall(**FEW, joined=False), Copying(**FEW), Adding(**FEW), Needle(**FEW))


@pytest.mark.parametrize("values", SAMPLES)
def test_every_number_lies_in_the_range_that_it_is_of(values):
    names, of = ranges(values)
    assert of.shape == values.shape
    assert len(names) <= RANGES
    assert len(set(names)) == len(names)
    for value, place in zip(values.ravel(), of.ravel(), strict=True):
        low, _, high = names[place].replace(",", "").partition(" to ")
        assert int(low) <= value <= int(high or low)


@pytest.mark.parametrize("values", SAMPLES)
def test_ranges_ascend_and_each_holds_a_fair_share(values):
    names, of = ranges(values)
    counts = np.bincount(of.ravel(), minlength=len(names))
    assert counts.min() >= values.size / (2 * RANGES) - 1
    highest = [values[of == place].max() for place in range(len(names))]
    assert highest == sorted(highest)


def test_each_number_has_a_kind_of_its_own():
    names, of = each(np.array([[3, 1000], [1, 3]]))
    assert names == ("1", "3", "1,000")
    assert of.tolist() == [[1, 2], [0, 1]]


def test_the_metric_of_a_kind_is_that_of_its_examples_alone():
    objective = BinaryClassification(classes=("no", "yes"), metric="auc")
    truth, chosen = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.9, 0.95, 0.2, 0.3])
    kinds = {"length": Kinds(("short", "long", "none"), np.array([0, 0, 1, 1, 1]))}
    found = objective.breakdown(truth, chosen, kinds)
    assert found == {"length": {"short": (1.0, 2), "long": (0.0, 3)}}


def test_one_class_alone_has_no_auc():
    objective = BinaryClassification(classes=("no", "yes"), metric="auc")
    kinds = {"length": Kinds(("short", "long"), np.array([0, 0, 1]))}
    found = objective.breakdown(np.array([0, 1, 1]), np.array([0.1, 0.9, 0.5]), kinds)
    assert found["length"] == {"short": (1.0, 2), "long": (None, 1)}


@pytest.mark.parametrize(
    ("objective", "truth", "chosen", "value"),
    [
        (Classification(classes=("a", "b", "c"), metric="macro_f1"), [0, 1, 2], [0, 1, 1], 5 / 9),
        (Regression(), [1.0, 2.0, 4.0], [1.5, 2.0, 3.0], 0.5),
        (TokenClassification(classes=("a", "b")), [[0, 1], [1, 1]], [[0, 0], [1, 1]], 0.75),
    ],
)
def test_every_objective_gives_its_metric_by_kind(objective, truth, chosen, value):
    kinds = Kinds(("all",), np.zeros(np.shape(truth), int))
    found = objective.breakdown(np.array(truth), np.array(chosen), {"by": kinds})["by"]["all"]
    assert found.value == pytest.approx(value)
    assert found.count == np.size(truth)


@pytest.mark.parametrize("task", TASKS)
def test_kinds_fit_the_answers_of_our_tasks(task):
    check_kinds_fit_the_answers(Case(task, task.traits.targets[0]))


def test_the_root_operator_says_all_that_the_first_symbol_does():
    data = LISTOPS.load()
    names, of = data.kinds("test")["root operator"]
    test = data.splits["test"]
    roots = [expression.removeprefix("[") for expression in data.summary["inputs"]]
    assert [names[place] for place in of] == [roots[symbol] for symbol in test.symbols[test.start]]
    assert END not in test.symbols[test.start]


@pytest.mark.parametrize("joined", [True, False])
def test_a_recalled_value_stood_at_its_distance(joined):
    task = Recall(**FEW, joined=joined)
    part = task.load().splits["test"]
    names, of = task.sort(part)["distance"]
    assert part.asked is not None
    rows = part.symbols.reshape(len(part), task.tokens, 2)
    for row, asked, kinds in zip(rows, part.asked, of, strict=True):
        for place, kind in zip(asked, kinds, strict=True):
            low, _, high = names[kind].partition(" to ")
            first = row[:, 0].tolist().index(row[place, 0])
            assert int(low) <= place - first <= int(high or low)


def test_histories_are_sorted_by_their_length(tmp_path):
    data = Custom(schema=str(write(tmp_path))).load()
    assert isinstance(data, EventData)
    names, of = data.kinds("test")["length of the history"]
    lengths = data.test.stop - data.test.start
    assert all(lengths[of == place].min() == int(name.split(" ")[0]) for place, name in enumerate(names))


def test_a_baseline_is_shown_by_kind_too():
    data = LISTOPS.load()
    output = data.baseline("first symbol", length=data.longest, seed=0)
    result = baseline_result(data, output)
    by_operator = result["breakdown"]["root operator"]
    right = sum(part["value"] * part["count"] for part in by_operator.values())
    assert sum(part["count"] for part in by_operator.values()) == FEW["test"]
    assert right / FEW["test"] == pytest.approx(result["test"]["accuracy"])
