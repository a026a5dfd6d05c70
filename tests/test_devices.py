"""Several processes that train one model are one process that takes the same batches, one after the other."""

import json
import multiprocessing
import subprocess
import sys

import pytest
import torch
from experiments_sample import Interrupted, changed, quick, silent
from torch.testing import assert_close

from subquad import TrainingConfig, checkpoint
from subquad.experiments.device import require_devices
from subquad.experiments.fit import fit
from subquad.experiments.spec import Fit, compared
from subquad.experiments.training import Training
from subquad.records import Store

# random features, drawn anew on the way, and centroids that gradients do not teach
NETWORK = "performer:features=8,redraw_every=10+routing:clusters=3,window=7"
BUSY = """
import json, sys, time
from pathlib import Path
from subquad.experiments.ranks import group_of
from subquad.experiments.spec import Fit

if __name__ == "__main__":
    with group_of(Fit.from_json(json.loads(sys.argv[1])), Path(sys.argv[2])):
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def one(schema, data):
    """A spec of one device."""
    return changed(
        quick(schema, data),
        training={"accumulate": 4, "steps": 28, "batch": 4},
        mechanism={"attention": NETWORK},
        model={"depth": 2, "dropout": 0.0},
        validate=14,
    )


@pytest.fixture(scope="module")
def two(one):
    return changed(one, training={"devices": 2})


@pytest.mark.slow
def test_two_devices_learn_what_one_learns_from_the_same_batches(data, one, two, tmp_path):
    ended = [fit(spec, data, checkpoint_path=tmp_path / "kept", tell=silent) for spec in (one, two)]
    curves = [each.result["curve"] for each in ended]
    assert [(point["step"], point["examples"]) for point in curves[1]] == [
        (point["step"], point["examples"]) for point in curves[0]
    ]
    losses = [[point["loss"] for point in curve] for curve in curves]
    assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)  # float32, in another order of sums
    weights = [checkpoint.weights(each.model) for each in ended]
    assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)  # features and centroids, too
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_a_training_on_two_devices_goes_on_from_its_checkpoint_bit_for_bit(data, two, tmp_path):
    two = changed(two, model={"dropout": 0.1})
    undisturbed = fit(two, data, checkpoint_path=tmp_path / "undisturbed", tell=silent)

    def interrupt(phase, step, loss):
        if step == 27:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(two, data, checkpoint_path=tmp_path / "interrupted", tell=interrupt)
    steps = []
    resumed = fit(
        two,
        data,
        checkpoint_path=tmp_path / "interrupted",
        tell=lambda phase, step, loss: steps.append(step),
    )
    assert steps[0] == 26
    assert resumed.result == undisturbed.result
    assert_close(checkpoint.weights(resumed.model), checkpoint.weights(undisturbed.model), rtol=0, atol=0)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_its_reason_and_none_but_the_first_writes(
    data, two, tmp_path, monkeypatch
):
    monkeypatch.setattr(Training, "keep", lambda self: None)  # of the first rank

    def kill(phase, step, loss):
        if step == 26:  # behind the first checkpoint
            multiprocessing.active_children()[0].kill()

    with pytest.raises(MemoryError, match="rank 1: killed by signal 9"):
        fit(two, data, checkpoint_path=tmp_path / "kept", tell=kill)
    assert not multiprocessing.active_children()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_another_rank_raises_is_raised_with_its_rank(data, two, tmp_path):
    two = changed(two, data={"fingerprint": "another"})
    with pytest.raises(RuntimeError, match="rank 1: the data changed"):
        fit(two, data, checkpoint_path=tmp_path / "kept", tell=silent)


@pytest.mark.slow
def test_a_first_rank_that_does_not_notice_ends_with_the_reason_of_another(two, tmp_path):
    two = changed(two, data={"fingerprint": "another"})
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    command = [sys.executable, script, json.dumps(two.to_json()), tmp_path / "kept"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("rank 1: the data changed after this comparison began")


@pytest.mark.slow
def test_a_comparison_on_two_devices_ends_in_its_report(command_line, schema, tmp_path):
    told = "--attention linear --steps 2 --accumulate 2 --devices 2 --dim 8 --depth 1 --heads 2 --no-bench"
    asked = ["compare", "custom", "--data", schema, *told.split(), "--device", "cpu", "--out", tmp_path]
    status, out, err = command_line(*asked)
    assert status == 0, out + err
    store = Store(tmp_path)
    fits = [record for record in store.runs(store.get_comparison()) if record["kind"] == "fit"]
    assert [(record["status"], record["spec"]["training"]["devices"]) for record in fits] == [("ok", 2)]
    assert "devices" in next(tmp_path.rglob("*.html")).read_text()


def test_an_estimate_of_several_devices_is_refused(command_line, schema, tmp_path):
    asked = ["compare", "custom", "--data", schema, "--attention", "linear", "--no-bench", "--out", tmp_path]
    asked += ["--device", "cpu", "--accumulate", "2", "--devices", "2"]
    for option in (["--dry-run"], ["--budget", "1h"]):
        status, _, err = command_line(*asked, *option)
        assert status == 2
        assert "leave out devices, or the estimate and the budget" in " ".join(err.split())


def test_devices_share_the_batches_of_a_step():
    with pytest.raises(ValueError, match="let accumulate be a multiple of devices"):
        TrainingConfig(devices=2, accumulate=3)


def test_a_carried_state_is_on_one_device():
    with pytest.raises(ValueError, match="leave one of them out"):
        TrainingConfig(devices=2, accumulate=2, carry=1)


@pytest.mark.parametrize(("device", "there"), [("mps", 1), ("cuda", 3)])
def test_there_are_as_many_devices_as_are_asked_for(device, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ValueError, match=f"more than the {there} of '{device}' here"):
        require_devices(there + 1, device=device)
    require_devices(there, device=device)
    require_devices(4, device="cpu")  # where each is a process
    require_devices(1, device=device, elsewhere=True)  # whatever is here
    with pytest.raises(ValueError, match="take the executor 'local'"):
        require_devices(2, device=device, elsewhere=True)


def test_a_run_from_before_there_were_several_devices_is_that_of_one(one, two):
    document = one.to_json()
    del document["training"]["devices"]
    assert Fit.from_json(document) == one
    assert "devices" not in compared(one)["training"]
    assert two.key != one.key
