"""A comparison on several tasks: each has its own data, rows and keys, and shares all else."""

from dataclasses import replace

import pytest
from own_sample import write

from subquad.config import ModelConfig
from subquad.experiments.comparison import plan
from subquad.experiments.config import Comparison
from subquad.notation import written
from subquad.objectives import TokenClassification
from subquad.recorded import check_comparison
from subquad.records import comparison_key, run_keys

RECALL = "recall:train=40,validation=8,test=8,tokens=32,pairs=4,keys=8"
LISTOPS = "listops:train=40,validation=8,test=8,depth=3,above=4,below=30"


@pytest.fixture
def config():
    return Comparison(
        tasks=(RECALL, LISTOPS),
        attention=("linear", "nystromformer"),
        model=ModelConfig(dim=8, heads=2),
        seeds=2,
        device="cpu",
    )


@pytest.fixture
def causal(monkeypatch):
    """Recall asks for causal forms, as language models do; ListOps does not."""
    monkeypatch.setattr(TokenClassification, "causal", True)


def labels(planned):
    """The rows of each task that are fitted, by task."""
    return {task.document["label"]: [row["label"] for row in task.document["rows"]] for task in planned.tasks}


def test_every_mechanism_is_fitted_on_every_task_and_benched_once(config):
    planned = plan(config)
    check_comparison(planned.document)
    assert labels(planned) == {
        "recall": ["linear", "nystromformer"],
        "listops": ["linear", "nystromformer"],
    }
    runs = [(fit.data.task, fit.mechanism.label, fit.seed) for fit in planned.fits]
    assert len(runs) == len(set(runs)) == 2 * 2 * 2
    assert [seed for _, _, seed in runs] == [0] * 4 + [1] * 4
    assert len(planned.benches) == 2 * len(planned.document["lengths"])
    assert min(planned.document["lengths"]) == max(task.data.length for task in planned.tasks) == 32


def test_within_a_task_rows_differ_in_the_mechanism_alone(config):
    for task in plan(config).tasks:
        linear, other = task.fits[:2]
        assert replace(other, mechanism=linear.mechanism) == linear


def test_another_task_beside_it_changes_no_run_of_a_task(config):
    several, alone = plan(config), plan(replace(config, tasks=(LISTOPS,)))
    assert several.tasks[1].document["keys"] == alone.tasks[0].document["keys"]
    assert comparison_key(several.document) != comparison_key(alone.document)


def test_a_comparison_is_named_by_its_runs_alone(config):
    planned = plan(config)
    keys = run_keys(planned.document)
    assert sorted(key for each in keys.values() for key in each) == sorted(spec.key for spec in planned.specs)
    assert comparison_key(planned.document) == comparison_key({**planned.document, "workers": 7})


def test_a_mechanism_that_cannot_take_a_task_says_why_and_runs_on_the_others(config, causal):
    planned = plan(config)
    check_comparison(planned.document)
    assert labels(planned) == {"recall": ["linear"], "listops": ["linear", "nystromformer"]}
    (refusal,) = planned.tasks[0].document["refusals"]
    assert refusal["label"] == "nystromformer"
    assert "causal" in refusal["reason"]
    assert not planned.tasks[1].document["refusals"]


def test_a_choice_of_keys_that_knows_the_future_is_no_causal_form(config, causal):
    planned = plan(replace(config, attention=("linear", "informer")))
    assert planned.tasks[0].refusals["informer"].startswith("'informer' is causal in its values only")


def test_a_mechanism_is_benched_in_every_form_that_a_task_asks_for(config, causal):
    planned = plan(replace(config, attention=("linear",)))
    assert [(row["label"], row["causal"]) for row in planned.document["rows"]] == [
        ("linear", True),
        ("linear", False),
    ]


def test_a_mechanism_that_no_task_can_take_is_refused(config, causal):
    with pytest.raises(ValueError, match=r"'nystromformer'.* causal"):
        plan(replace(config, tasks=(RECALL,)))


def test_of_all_mechanisms_those_that_no_task_can_take_say_so(config, causal):
    (task,) = plan(replace(config, tasks=(RECALL,), attention=("all",))).tasks
    assert {"nystromformer", "informer"} <= task.refusals.keys()
    assert len(task.rows) > len(task.refusals)


def test_a_skeleton_that_cannot_be_built_is_no_fault_of_the_mechanisms(config):
    wrong = replace(config, model=ModelConfig(dim=8, heads=2, positions="sinus"), attention=("all",))
    with pytest.raises(ValueError, match="unknown positions 'sinus'"):
        plan(wrong)


def test_tasks_of_one_name_are_called_by_all_that_was_typed(config):
    pairs = tuple(f"recall:train=40,validation=8,test=8,tokens=32,keys=8,pairs={pairs}" for pairs in (2, 4))
    planned = plan(replace(config, tasks=(*pairs, LISTOPS)))
    assert list(labels(planned)) == [*pairs, "listops"]


def test_the_task_as_typed_names_its_target_where_there_are_others(config):
    planned = plan(replace(config, tasks=("transactions:target=spend", RECALL), attention=("linear",)))
    assert [task.document["task"] for task in planned.tasks] == ["transactions:target=spend", RECALL]


def test_own_data_are_one_more_task_and_each_has_its_target(config, tmp_path):
    own = written("custom", {"schema": str(write(tmp_path / "own"))})
    planned = plan(replace(config, tasks=(f"{LISTOPS},target=value", own), attention=("linear",)))
    assert list(labels(planned)) == ["listops", "custom"]
    assert [task.data.target for task in planned.tasks] == ["value", "over_55"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ()}, "no task is named"),
        ({"target": "value"}, "target 'value' is that of one task, and there are 2: .*'recall:target=value'"),
        ({"tasks": (RECALL, RECALL)}, "'recall:.*' is asked for twice"),
        ({"tasks": (RECALL, f"{RECALL},seed=0")}, "are the same task: leave one out"),
        ({"tasks": (f"{RECALL},target=vale",)}, "'recall' has no target 'vale'; did you mean 'value'"),
        ({"tasks": (f"{RECALL},target=value",), "target": "value"}, "leave one out"),
        ({"length": 31}, "^recall: sequences have up to 32 tokens and none can be answered in part"),
        ({"attention": ("linear", "nystromformer:landmark=3")}, "'nystromformer' has no option 'landmark'"),
        ({"attention": ("linear", "linformer:rank=0")}, "rank must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(config, change, message):
    with pytest.raises(ValueError, match=message):
        plan(replace(config, **change))
