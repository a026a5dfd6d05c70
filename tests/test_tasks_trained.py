"""Every task trains with one mechanism of each file that can take it; what cannot says why."""

import os
from pathlib import Path
from typing import Any

import pytest
from mechanism_names import ONE_OF_EACH_FILE

from subquad import tasks
from subquad.config import ModelConfig
from subquad.experiments.comparison import plan
from subquad.experiments.config import Comparison, TrainingConfig
from subquad.experiments.training import Training
from subquad.notation import written
from subquad.registry import catalog
from subquad.tasks import DataError

FEW: dict[str, int] = {"train": 8, "validation": 2, "test": 2}
SMALL: dict[str, dict[str, Any]] = {  # options with which a task's sequences are short
    "transactions": {},
    "listops": {**FEW, "depth": 4, "above": 8, "below": 40},
    "text": {**FEW, "cut": 60},
    "matching": {**FEW, "cut": 60},
    "image": FEW,
    "pathfinder": {**FEW, "contour": 4},
    "recall": {**FEW, "tokens": 24, "pairs": 3, "keys": 8},
    "copying": {**FEW, "tokens": 24},
    "needle": {**FEW, "tokens": 24, "distance": 12},
    "adding": {**FEW, "tokens": 24},
    "language": {"train": 4000, "validation": 400, "test": 400},
    "language:target=masked": {"train": 4000, "validation": 400, "test": 400},
}


def test_no_task_is_left_out():
    assert {text.partition(":")[0] for text in SMALL} == set(tasks.catalog()) - {"custom"}


@pytest.mark.slow
@pytest.mark.parametrize("task", SMALL)
def test_a_task_trains_with_one_mechanism_of_each_file_and_refuses_with_a_reason(task: str, tmp_path: Path):
    name, _, target = task.partition(":target=")
    options = SMALL[task]
    try:
        data = tasks.load(name, target=target or None, **options)
    except DataError as missing:
        if os.environ.get("SUBQUAD_DATA"):
            raise
        pytest.skip(str(missing))
    planned = plan(
        Comparison(
            tasks=(written(name, {**options, **({"target": target} if target else {})}),),
            attention=("all",),
            length=None if name in ("image", "pathfinder") else 64,
            model=ModelConfig(dim=8, depth=1, heads=2),
            training=TrainingConfig(steps=1, batch=64),
            bench=False,
            device="cpu",
        )
    )
    (document,) = planned.document["tasks"]
    rows = {row["attention"] for row in document["rows"]}
    assert rows | {refusal["label"] for refusal in document["refusals"]} == set(catalog())
    assert all(refusal["reason"] for refusal in document["refusals"])
    for spec in planned.fits:
        if spec.mechanism.attention not in ONE_OF_EACH_FILE:
            continue
        training = Training(spec, data, checkpoint_path=tmp_path / spec.key, tell=lambda *_: None)
        training.run()
        assert training.course.best_step == 1
