"""Many runs, of which only what is missing is run, once, whoever asks for it."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from experiments_sample import QUICK, changed
from runs_sample import CELL, MEASURED, Recorder, cells

from subquad.executors import Executor
from subquad.executors.outcome import make_record
from subquad.experiments.grid import run_missing
from subquad.experiments.spec import Baseline, Bench, DataSpec, MechanismSpec, Place
from subquad.files import write_whole
from subquad.records import Store

HOLD = """
import json, sys
from pathlib import Path
from subquad.records import Store
key, record = sys.argv[2:]
store = Store(Path(sys.argv[1]))
with store.claim(key) as mine:
    print(mine, flush=True)
    sys.stdin.readline()
    store.put(json.loads(record))
"""


class Scripted(Executor):
    """Gives a record without a run: of a failure where the attention is called "broken"."""

    name = "scripted"

    def __init__(self):
        super().__init__(slots=1, timeout=1.0)

    def run(self, spec: Any, store, tell):
        tell({"event": "progress", "phase": "train", "step": 1, "steps": 2, "loss": 0.5})
        ok = {"status": "ok", "reason": "", "measured": MEASURED}
        told = {"status": "failed", "reason": "it broke"} if spec.mechanism.attention == "broken" else ok
        return make_record(spec, told, seconds=1.0)

    def stop(self):
        pass


class Confused(Scripted):
    """Gives the record of another run, or none."""

    def __init__(self, **changes):
        super().__init__()
        self.changes = changes

    def run(self, spec, store, tell):
        return super().run(spec, store, tell) | self.changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"key": "0" * 16}, "it is that of '0000000000000000'"), ({"status": "fine"}, "status")],
)
def test_a_record_that_is_not_of_the_run_is_a_failure_of_the_run(store, changes, reason):
    (spec,) = cells("linear")
    (record,) = run_missing([spec], store, executor=Confused(**changes), observer=Recorder())
    assert (record["key"], record["status"]) == (spec.key, "failed")
    assert record["reason"].startswith("the executor gave no record of this run: ")
    assert reason in record["reason"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def run(specs, store):
    observer = Recorder()
    records = run_missing(specs, store, executor=Scripted(), observer=observer)
    return {record["spec"]["mechanism"]["attention"]: record for record in records}, observer


@pytest.mark.parametrize("damage", [b"", b"{", b'{"status": "ok"}', b"\xff", "folder", "loop"])
def test_what_a_damaged_record_was_of_is_done_again_and_the_file_is_kept(store, damage):
    (spec,) = cells("well")
    run([spec], store)
    path = store.record_path(spec.key)
    path.unlink()
    match damage:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case content:
            path.write_bytes(content)
    records, observer = run([spec], store)
    assert records["well"]["status"] == "ok"
    aside = path.with_name(f"{path.name}.damaged")
    assert aside.is_dir() if damage == "folder" else aside.is_symlink() or aside.read_bytes() == damage
    (note,) = (what for what, _ in observer.events if str(path) in what)
    assert note.endswith(f"; the run is done again, and the file is kept as {path.name}.damaged")


def test_only_what_is_missing_or_failed_is_done_again(store):
    _, first = run(cells("well", "broken"), store)
    _, second = run(
        [*cells("well", "broken"), replace(CELL, mechanism=MechanismSpec(attention="well"), length=128)],
        store,
    )
    assert first.of("started") == ["well", "broken"]
    assert second.of("skipped") == ["well"]
    assert second.of("started") == ["broken", "well"]


def test_the_checkpoint_of_a_run_that_was_killed_behind_its_record_goes(store):
    (spec,) = cells("linear")
    run_missing([spec], store, executor=Scripted(), observer=Recorder())
    path = store.checkpoint_path(spec.key)
    path.parent.mkdir()
    path.touch()
    run_missing([spec], store, executor=Scripted(), observer=(seen := Recorder()))
    assert not path.exists()
    assert seen.of("skipped") == ["linear"]


@pytest.mark.parametrize(
    ("status", "stays"),
    [("timeout", True), ("out of memory", True), ("failed", False), ("not finite", False), ("ok", False)],
)
def test_the_checkpoint_stays_of_a_run_that_may_go_on_and_of_no_other(store, status, stays):
    (spec,) = cells("linear")
    path = store.checkpoint_path(spec.key)
    write_whole(path, b"as far as it came")
    nothing = {} if status == "ok" else {"measured": {}}
    executor = Confused(status=status, **nothing)
    (record,) = run_missing([spec], store, executor=executor, observer=Recorder())
    assert record["status"] == status
    assert path.exists() == stays


def test_a_record_says_what_was_asked_and_what_came_of_it(store):
    (spec,) = cells("well")
    _, observer = run([spec], store)
    record = store.get(spec.key)
    assert record is not None
    assert {name: record[name] for name in ("key", "kind", "version", "status", "result")} == {
        "key": spec.key,
        "kind": "bench",
        "version": spec.version,
        "status": "ok",
        "result": {},
    }
    assert Bench.from_json(record["spec"]) == spec
    assert [what for what, _ in observer.events] == ["started", "progress", "finished"]


def test_a_run_that_another_process_has_claimed_is_waited_for_and_not_done_twice(store):
    (spec,) = cells("well")
    record = {
        "key": spec.key,
        "kind": "bench",
        "version": spec.version,
        "spec": spec.to_json(),
        "status": "failed",
        "reason": "theirs",
        "result": {},
        "measured": {},
    }
    command = [sys.executable, "-c", HOLD, str(store.folder), spec.key, json.dumps(record)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == "True\n"
        pipe = other.stdin

        class LetGo(Recorder):
            def on_waiting(self, spec):
                pipe.write("\n")
                pipe.flush()

        observer = LetGo()
        (found,) = run_missing([spec], store, executor=Scripted(), observer=observer)
    assert found["reason"] == "theirs"
    assert observer.of("started") == []


def test_where_data_lie_and_how_fast_a_baseline_is_found_do_not_change_its_key(tmp_path):
    baseline = Baseline(
        data=DataSpec(task="custom", target="a", options={"schema": "/here"}, fingerprint="d", length=5),
        baseline="majority",
        seed=0,
        place=Place(device="cpu", threads=1),
    )
    moved = changed(baseline, data={"options": {"schema": "/there"}}, place={"threads": 2})
    assert moved == baseline
    assert moved.key == baseline.key
    assert changed(baseline, data={"fingerprint": "e"}).key != baseline.key


@pytest.mark.parametrize("spec", [QUICK, CELL])
def test_a_spec_that_was_json_is_the_same_spec_with_the_same_key(spec):
    again = type(spec).from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.key == spec.key
