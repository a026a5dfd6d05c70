"""Runs on three Ray nodes of this machine: whatever dies, their records are those of undisturbed ones."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import psutil
import pytest
from experiments_sample import changed, quick
from own_sample import write
from ray_sample import Deed

from subquad import tasks
from subquad.executors import Local, Ray, cluster
from subquad.executors import ray as ray_executor
from subquad.experiments.grid import Observer, run_missing
from subquad.records import Store

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def three_nodes():
    """The cluster, which has a head without CPUs besides."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_worker_niceness", cluster.LOCAL["RAY_worker_niceness"])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        made.add_node(num_cpus=1)
    before = signal.getsignal(signal.SIGTERM)
    yield made
    ray.shutdown()
    made.shutdown()
    signal.signal(signal.SIGTERM, before)


def on_cluster(three_nodes, **options):
    return Ray(timeout=300, address=three_nodes.address, **options)


def named(three_nodes, name):
    """The node that people call so."""
    return next(each for each in three_nodes.list_all_nodes() if each.node_id.startswith(name.split("/")[1]))


def kill_worker(node):
    """That of the run on a node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    (worker,) = (child for child in raylet.children() if "run_on_node" in child.name() + child.cmdline()[0])
    worker.kill()


class Killer(Observer):
    """Kills a node, and then a worker, at a step of a run each."""

    def __init__(self, three_nodes, seed):
        self.three_nodes = three_nodes
        draw = random.Random(seed)
        self.kills = [(self.kill_node, draw.randint(26, 70)), (self.kill_worker, draw.randint(26, 70))]
        self.killed, self.notes = [], []
        self.lock = threading.Lock()

    def on_note(self, spec, text):
        self.notes.append(text)

    def on_progress(self, spec, progress):
        with self.lock:
            if self.kills and spec.key not in self.killed and progress["step"] >= self.kills[0][1]:
                kill, _ = self.kills.pop(0)
                self.killed.append(spec.key)
                kill(named(self.three_nodes, progress.get("node", "")))

    def kill_node(self, node):
        self.three_nodes.remove_node(node, allow_graceful=False)

    def kill_worker(self, node):
        kill_worker(node)


DRIVER = """
import json, sys
from pathlib import Path
from subquad.executors import Ray
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.spec import Fit
from subquad.records import Store
store, executor = Store(Path(sys.argv[1])), Ray(timeout=300, address=sys.argv[2])
specs = [Fit.from_json(each) for each in json.loads(sys.argv[3])]
run_missing(specs, store, executor=executor, observer=Observer())
"""


def kill_driver(specs, store, address):
    """Begin the runs in a process, and kill it after the first checkpoint."""
    texts = [str(store.folder), address, json.dumps([spec.to_json() for spec in specs])]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *texts])
    while not list(store.folder.glob("checkpoints/*.safetensors")):
        assert driver.poll() is None, "it ended before there was a checkpoint"
        time.sleep(0.01)
    driver.kill()
    driver.wait()


@pytest.mark.slow
def test_with_the_driver_a_node_and_a_worker_killed_the_scores_are_those_of_an_undisturbed_run(
    three_nodes, tmp_path
):
    schema = write(tmp_path / "own")
    fit = changed(
        quick(schema, tasks.load("custom", schema=str(schema))), training={"steps": 100}, validate=50
    )
    specs = [
        changed(fit, mechanism={"attention": attention}, seed=seed)
        for seed in range(2)
        for attention in ("linear", "softmax")
    ]
    whole, disturbed = Store(tmp_path / "whole"), Store(tmp_path / "disturbed")
    expected = run_missing(specs, whole, executor=Local(timeout=300), observer=Observer())

    kill_driver(specs, disturbed, three_nodes.address)
    killer = Killer(three_nodes, seed=0)
    records = run_missing(specs, disturbed, executor=on_cluster(three_nodes), observer=killer)
    three_nodes.add_node(num_cpus=1)

    assert [record["reason"] for record in records] == [""] * len(specs)
    assert [record["result"] for record in records] == [record["result"] for record in expected]
    for spec in specs:
        weights = [store.model_path(spec.key) / "model.safetensors" for store in (whole, disturbed)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    attempts = {record["key"]: record["attempts"] for record in records}
    assert len(killer.killed) == 2
    assert attempts == {spec.key: 1 + (spec.key in killer.killed) for spec in specs}
    ends = Counter("died" in note for note in killer.notes)
    assert ends == {True: 1, False: 1}, killer.notes
    assert not list((disturbed.folder / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_run_that_kills_its_workers_is_a_failed_one_and_no_loop(three_nodes, tmp_path):
    notes = []
    record = on_cluster(three_nodes).run(Deed("kill the worker"), Store(tmp_path), notes.append)
    assert (record["status"], record["attempts"]) == ("failed", ray_executor.LOSSES)
    assert "3 times in a row without a new step" in record["reason"]
    assert sum(event["event"] == "note" for event in notes) == ray_executor.LOSSES - 1


@pytest.mark.slow
def test_a_node_that_died_after_it_was_counted_is_left_out(three_nodes, monkeypatch):
    executor = on_cluster(three_nodes)
    there = cluster.nodes()
    counted = [*there, there[0]._replace(id="0" * len(there[0].id))]
    assert cluster.answers(cluster.kind, counted).keys() == {each.id for each in there}
    monkeypatch.setattr(cluster, "nodes", lambda: counted)
    assert on_cluster(three_nodes).slots == len(counted) == executor.slots + 1


@pytest.mark.slow
def test_a_node_that_dies_while_it_is_asked_is_left_out_and_one_that_lives_is_refused(
    three_nodes, monkeypatch
):
    def crash():
        os._exit(1)

    on_cluster(three_nodes)
    there = cluster.nodes()[:1]
    with pytest.raises(ValueError, match="cannot run subquad"):
        cluster.answers(crash, there)
    monkeypatch.setattr(cluster, "nodes", lambda: [])
    assert cluster.answers(crash, there) == {}


@pytest.mark.slow
def test_stopping_ends_the_runs_and_what_they_started(three_nodes, tmp_path):
    executor, started = on_cluster(three_nodes), []

    def tell(event):
        if event["event"] == "note":
            started.append(int(event["text"]))
            threading.Thread(target=executor.stop).start()

    record = executor.run(Deed("sleep"), Store(tmp_path), tell)
    assert record["reason"] == "it was stopped"
    psutil.wait_procs([psutil.Process(each) for each in started if psutil.pid_exists(each)], timeout=30)
    assert not any(psutil.pid_exists(each) for each in started)
    assert executor.run(Deed("sleep"), Store(tmp_path), tell)["reason"] == "it was stopped"
    assert len(started) == 1


@pytest.mark.slow
def test_prepared_data_reach_a_node_that_does_not_see_the_folder(three_nodes, tmp_path):
    folder = tmp_path / "cache" / f"sample-{os.getpid()}"
    folder.mkdir(parents=True)
    (folder / "parts").write_text("a line")
    executor = on_cluster(three_nodes)
    executor.bring([folder])
    shutil.rmtree(folder.parent)
    record = executor.run(Deed("read the prepared data"), Store(tmp_path / "runs"), print)
    assert record["reason"] == ""
    assert record["result"][folder.name] == "a line"


ALONE = """
import json, os, subprocess, sys
import psutil
from subquad.executors import cluster

cluster.connect("")
import ray

address = ray.get_runtime_context().gcs_address
processes = psutil.Process().children(recursive=True)
ports = [port for process in processes for port in process.net_connections("tcp")]
print(json.dumps(sorted({port.laddr.ip for port in ports if port.status == psutil.CONN_LISTEN})))
for token in (None, 64 * "0", "own"):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    if token:
        environment |= {"RAY_AUTH_MODE": "token"} | ({} if token == "own" else {"RAY_AUTH_TOKEN": token})
    command = [sys.executable, "-c", sys.argv[1], address]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(asked.stdout.strip() or asked.stderr)
"""
ASK = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError

try:
    print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=30)))
except AuthenticationError:
    print("refused")
"""


@pytest.mark.slow
def test_a_cluster_of_this_machine_listens_on_its_loopback_and_asks_for_the_token():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", ALONE, ASK]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    addresses, *answers = ran.stdout.splitlines()
    assert {each.removeprefix("::ffff:") for each in json.loads(addresses)} == {"127.0.0.1"}
    assert answers == ["refused", "refused", "1"]
