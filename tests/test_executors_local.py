"""A process a run: whatever one does, it leaves a record, and the others go on."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from experiments_sample import changed, quick
from own_sample import write
from runs_sample import CELL, MEASURED, Recorder, cells

from subquad.executors import Local, local
from subquad.executors.outcome import failure
from subquad.experiments.grid import run_missing
from subquad.records import Store

linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are waited for as Linux does it")

# stands for `subquad.executors.child`: does what the attention's name says
STAND_IN = """
import json, os, signal, subprocess, sys, time
job = json.loads(sys.stdin.readline())
def say(**event): print(json.dumps({"token": job["token"], **event}), flush=True)
def end(**found): say(event="outcome", status="ok", reason="", **found)
def beget():  # a process that holds the pipe open, and would live for ever
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10 ** 6)"])
    with open(job["folder"] + "/draft", "w") as file: file.write(str(child.pid))
    os.rename(file.name, job["folder"] + "/grandchild")
match job["spec"]["mechanism"]["attention"]:
    case "well":
        say(event="progress", phase="train", step=1, steps=2, loss=0.5)
        end(result={"length": job["spec"]["length"]}, measured=MEASURED, data={})
    case "parent":
        beget()
        end(result={}, measured=MEASURED, data={})
    case "dead parent":
        beget()
        print("ValueError: dead", file=sys.stderr)
        sys.exit(1)
    case "slow parent":
        beget()
        sys.stdin.read()
    case "chatter": print("loading…")
    case "noise": os.write(1, bytes(range(256)) + b"\\n")
    case "long": [os.write(1, b"x" * 2 ** 20) for _ in range(65)]
    case "half":
        os.write(1, b'{"event": "outcome", "status": "o')
        sys.exit(3)
    case "forged": print(json.dumps({"token": "0" * 32, "event": "outcome", "status": "ok", "reason": ""}))
    case "unjob": print(json.dumps({"event": "outcome", "status": "ok", "reason": ""}))
    case "strange": say(event="progress", phase="train", step="one", steps=2, loss=None)
    case "unknown": say(event="end")
    case "endless": say(event=10**6 * "e" + "\\x1b")
    case "empty": end(result={}, measured={}, data={})
    case "infinite": end(result={}, measured={**MEASURED, "memory": float("inf")}, data={})
    case "no status": say(event="outcome", status="fine", reason="", result={}, measured={}, data={})
    case "closed":
        os.close(1)
        sys.stdin.read()
    case "flood":
        while True:
            os.write(2, b"\\xc3\\xa4" * 2 ** 15)
    case "killed": os.kill(os.getpid(), signal.SIGKILL)
    case "crashed": os.kill(os.getpid(), signal.SIGSEGV)
    case "broken":
        print("ValueError: no such thing", file=sys.stderr)
        sys.exit(1)
    case "gone":
        print("all is well", file=sys.stderr, flush=True)
        os._exit(0)
    case "slow":
        open(job["folder"] + "/started", "w").close()
        sys.stdin.read()
""".replace("MEASURED", repr(MEASURED))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def stand_in(monkeypatch, store):
    store.folder.mkdir()
    monkeypatch.setattr(local, "COMMAND", [sys.executable, "-c", STAND_IN])


def run(names, store, *, slots=1, timeout=60.0):
    """The records of cells, by name."""
    executor = Local(slots=slots, timeout=timeout)
    with ThreadPoolExecutor(slots) as pool:
        records = pool.map(lambda spec: executor.run(spec, store, lambda event: None), cells(*names))
    return {record["spec"]["mechanism"]["attention"]: record for record in records}


@pytest.mark.usefixtures("stand_in")
def test_what_one_run_does_costs_no_other_its_result(store):
    records = run(["killed", "crashed", "broken", "gone", "well"], store, slots=2)
    ended = {name: (record["status"], record["reason"]) for name, record in records.items()}
    assert ended == {
        "killed": ("out of memory", "killed by signal 9, as the system does when memory runs out"),
        "crashed": ("failed", "killed by signal 11 (Segmentation fault)"),
        "broken": ("failed", "ValueError: no such thing"),
        "gone": ("failed", "ended with status 0"),
        "well": ("ok", ""),
    }


@pytest.mark.usefixtures("stand_in")
def test_a_run_that_takes_too_long_is_ended_and_recorded(store):
    record = run(["slow"], store, timeout=1.0)["slow"]
    assert record["status"] == "timeout"
    assert record["reason"] == "not done after 1 seconds"


@pytest.mark.usefixtures("stand_in")
def test_a_run_that_prints_without_end_is_ended_before_it_fills_the_disk(store, monkeypatch):
    monkeypatch.setattr(local, "MAX_LOG_BYTES", 2**20)
    record = run(["flood"], store)["flood"]
    assert (record["status"], record["reason"]) == ("failed", "it printed more than 1,048,576 bytes")
    assert set(record["log"]) == {"ä"}


@pytest.mark.usefixtures("stand_in")
def test_progress_is_told_and_what_was_found_is_recorded(store):
    told = []
    (spec,) = cells("well")
    record = Local(timeout=60).run(spec, store, told.append)
    assert told == [{"event": "progress", "phase": "train", "step": 1, "steps": 2, "loss": 0.5}]
    assert record["key"] == spec.key
    assert record["result"] == {"length": 64}
    assert "event" not in record


@pytest.mark.usefixtures("stand_in")
def test_a_stopped_executor_begins_nothing(store):
    executor = Local(timeout=60)
    executor.stop()
    (spec,) = cells("well")
    assert executor.run(spec, store, print)["status"] == "failed"


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("chatter", "something wrote b'loading"),
        ("noise", "something wrote b'\\x00\\x01"),
        ("long", "a line of its events has more than"),
        ("half", "ended with status 3"),
        ("forged", 'something wrote b\'{"token": "0000'),
        ("unjob", 'something wrote b\'{"event": "outcome"'),
        ("strange", "it sent an invalid event: step: input should be a valid integer, not 'one'"),
        ("unknown", "it sent an unknown event 'end'"),
        ("endless", "it sent an unknown event 'eee"),
        ("empty", "its outcome is no result: measured.forward: is missing"),
        ("infinite", "something wrote"),
        ("no status", "it sent an invalid event: status: input should be 'ok'"),
        ("closed", "it closed the pipe of its events"),
    ],
)
def test_what_is_no_event_of_a_run_fails_that_run_and_no_other(store, monkeypatch, name, reason):
    monkeypatch.setattr(local, "EXIT_GRACE_S", 0.1)
    records = run([name, "well"], store)
    assert records["well"]["status"] == "ok"
    assert records[name]["status"] == "failed"
    assert records[name]["reason"].startswith(reason)
    assert len(records[name]["reason"]) < 500
    assert records[name]["reason"].isprintable()


def gone(process):
    """Whether a process ends, within ten seconds."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    with os.fdopen(handle) as file:
        return bool(select.select([file], [], [], 10)[0])


@linux
@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("name", "status"), [("parent", "ok"), ("dead parent", "failed"), ("slow parent", "timeout")]
)
def test_what_a_run_started_ends_with_it_and_keeps_nobody_waiting(store, name, status):
    timeout = 2.0 if status == "timeout" else 60.0
    records = run([name], store, timeout=timeout)
    assert records[name]["status"] == status
    assert records[name]["seconds"] < 30
    assert gone(int((store.folder / "grandchild").read_text()))


@linux
@pytest.mark.usefixtures("stand_in")
def test_an_interruption_ends_the_runs_and_records_none_of_them(store, monkeypatch):
    children = []
    spawn = Local.spawn

    def remember(*args):
        children.append(child := spawn(*args))
        return child

    monkeypatch.setattr(Local, "spawn", remember)

    def interrupt():
        while not (store.folder / "grandchild").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    threading.Thread(target=interrupt).start()
    (spec,) = cells("slow parent")
    with pytest.raises(KeyboardInterrupt):
        run_missing([spec], store, executor=Local(timeout=60), observer=Recorder())
    signal.signal(signal.SIGINT, before)
    assert store.get(spec.key) is None
    assert [child.returncode for child in children] == [-signal.SIGKILL]
    assert gone(int((store.folder / "grandchild").read_text()))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "out of memory"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"
            ),
            "out of memory",
        ),
        (
            RuntimeError("Storage size calculation overflowed with sizes=[9223372036854775807, 4]"),
            "out of memory",
        ),
        (FloatingPointError("the training loss is nan at step 3"), "not finite"),
        (ValueError("two\nlines"), "failed"),
        (ValueError("\x1b[2J\ud800\u202e"), "failed"),
        (ValueError(10**6 * "x"), "failed"),
        (ValueError(), "failed"),
    ],
)
def test_how_a_run_ended_is_read_from_what_it_raised(error, status):
    assert failure(error)["status"] == status
    reason = failure(error)["reason"]
    assert reason.isprintable()
    assert 0 < len(reason) < 400


# the real child process from here on


def test_a_run_ends_when_the_process_that_started_it_is_gone(store):
    spec = replace(CELL, length=10**6)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(local.COMMAND, text=True, **pipes) as child:
        assert child.stdin
        assert child.stdout
        assert child.stderr
        child.stdin.write(json.dumps(local.job(spec, store, token="")) + "\n")
        child.stdin.close()  # as the system does for a dead process
        assert child.wait(timeout=60) == 1
        assert "outcome" not in child.stdout.read()
        assert child.stderr.read() == ""  # a line of Python's own would be the reason of a run that says none


ORPHANED = """
import subprocess, sys
from subquad.executors.child import end_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10 ** 6)"], stdin=subprocess.DEVNULL)
print(child.pid, flush=True)
end_with_parent(sys.stdin)
"""


@linux
def test_what_a_run_started_ends_too_when_the_process_that_started_the_run_is_gone():
    command = [sys.executable, "-c", ORPHANED]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as orphan:
        assert orphan.stdin
        assert orphan.stdout
        grandchild = int(orphan.stdout.readline())
        orphan.stdin.close()
        assert gone(grandchild)


COMPARE = """
import sys
from pathlib import Path
import json
from subquad.executors import Local
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.spec import Fit
from subquad.records import Store
spec, store = Fit.from_json(json.loads(sys.argv[2])), Store(Path(sys.argv[1]))
run_missing([spec], store, executor=Local(timeout=300), observer=Observer())
"""


def start(spec, store):
    command = [sys.executable, "-c", COMPARE, str(store.folder), json.dumps(spec.to_json())]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, "it ended before there was a checkpoint"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_and_started_again_ends_like_an_undisturbed_one(tmp_path):
    from subquad import tasks

    schema = write(tmp_path / "own")
    spec = changed(
        quick(schema, tasks.load("custom", schema=str(schema))), training={"steps": 400}, validate=100
    )
    disturbed, undisturbed = Store(tmp_path / "disturbed"), Store(tmp_path / "undisturbed")
    first, other = start(spec, disturbed), start(spec, undisturbed)
    kept = disturbed.checkpoint_path(spec.key)
    wait_for(kept, first)
    first.kill()  # SIGKILL, to the parent alone
    first.wait()
    with disturbed.claim(spec.key) as mine:
        assert mine
    assert disturbed.get(spec.key) is None
    again = start(spec, disturbed)
    assert again.wait() == other.wait() == 0
    resumed, whole = disturbed.get(spec.key), undisturbed.get(spec.key)
    assert resumed is not None
    assert whole is not None
    assert resumed["status"] == "ok", resumed["reason"]
    assert resumed["result"] == whole["result"]
    weights = [store.model_path(spec.key) / "model.safetensors" for store in (disturbed, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not kept.exists()
