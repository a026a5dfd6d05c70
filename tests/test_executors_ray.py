"""What the Ray executor asks of a cluster, and refuses; nodes are made up."""

import socket
from dataclasses import replace
from queue import SimpleQueue

import pytest
from experiments_sample import changed
from runs_sample import CELL, MEASURED

from subquad import executors
from subquad.cli.options import at_address
from subquad.executors import Ray, cluster, node
from subquad.executors import ray as ray_executor
from subquad.executors.cluster import Node
from subquad.executors.node import Work
from subquad.records import Store

pytest.importorskip("ray")


def work(seen, **changes):
    (seen / "mark").touch()
    made = Work("", {}, [], str(seen), "mark", "", 1.0, cluster.software(), "", {})
    return replace(made, **changes)


def test_a_node_with_the_same_software_that_sees_the_folder_takes_a_run(tmp_path):
    assert node.refused_here(work(tmp_path)) is None


def test_a_node_that_does_not_see_the_folder_refuses_the_run_and_names_the_remedy(tmp_path):
    for elsewhere in (work(tmp_path, folder=str(tmp_path / "none")), work(tmp_path, mark="of another")):
        assert "does not see the folder" in (refusal := node.refused_here(elsewhere) or "")
        assert "that all nodes share" in refusal


@pytest.mark.parametrize("name", sorted(cluster.software()))
def test_software_that_differs_is_refused_and_named_with_the_remedy(tmp_path, name):
    refusal = node.refused_here(work(tmp_path, software={**cluster.software(), name: "0.0.1"}))
    assert refusal is not None
    assert f"{name} {cluster.software()[name]} and not 0.0.1" in refusal
    assert "ray job submit --runtime-env-json" in refusal


def test_an_edited_module_is_other_software(tmp_path, monkeypatch):
    package = tmp_path / "subquad"
    (package / "executors").mkdir(parents=True)
    monkeypatch.setattr(cluster, "__file__", str(package / "executors" / "cluster.py"))
    seen = set()
    for text in ("a = 1\n", "a = 2\n"):
        (package / "module.py").write_text(text)
        cluster.code.cache_clear()
        seen.add(cluster.code())
    cluster.code.cache_clear()
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ray://host:10001", "start the command on a machine of the cluster"),
        ("host:door", "it is written HOST:PORT"),
        ("localhost:99999", "no Ray cluster answers"),
    ],
)
def test_an_address_where_no_cluster_can_be_is_refused(address, reason):
    with pytest.raises(ValueError, match=reason):
        cluster.require_answer(address)


def test_an_address_that_nothing_listens_on_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match=f"no Ray cluster answers at '127.0.0.1:{port}'"):
        cluster.require_answer(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("ray", {}),
        ("ray:nodes=4,memory_gb=1.5", {"nodes": 4, "memory_gb": 1.5}),
        (at_address("ray", "10.0.0.1:6379"), {"address": "10.0.0.1:6379"}),
        (at_address("ray:nodes=4", "auto"), {"nodes": 4, "address": "auto"}),
    ],
)
def test_an_executor_is_asked_for_with_its_options(text, options):
    asked = executors.find(text)
    assert (asked.cls, asked.options) == (Ray, options)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ray:node=4", "'ray' has no option 'node'; did you mean 'nodes'"),
        ("ray:nodes=four", "takes a whole number, not 'four'"),
        ("ray:slots=4", "'ray' has no option 'slots'"),
        (at_address("local", "auto"), "'local' has no option 'address'"),
    ],
)
def test_options_that_an_executor_has_not_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        executors.find(text)


def test_an_executor_whose_package_is_missing_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(Ray, "package", "no_such_package")
    with pytest.raises(ValueError, match=r"pip install 'subquad\[ray\]'"):
        executors.find("ray")


def progress(step):
    return {"event": "progress", "phase": "train", "step": step, "steps": 9, "loss": None}


def test_of_many_reports_of_progress_the_latest_is_told_and_nothing_else_is_lost():
    told = SimpleQueue()
    end = {"event": "record", "record": {}}
    for event in (*map(progress, range(5)), {"event": "note", "text": "damaged"}, progress(7), end):
        told.put(event)
    heard = list(node.latest(told))
    assert [event.get("step", event["event"]) for event in heard] == [0, 4, "note", 7, "record"]


def test_packed_data_are_unpacked_as_they_were_and_once(tmp_path):
    (folder := tmp_path / "recall-0123").mkdir()
    (folder / "parts").write_text("a line")
    (folder / "keys.bin").write_bytes(bytes(range(256)))
    packed, copy = node.pack(folder), tmp_path / "node" / folder.name
    for _ in range(2):
        node.unpack(packed, copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert list(copy.parent.iterdir()) == [copy]


def test_with_an_address_a_run_goes_on_from_its_checkpoint_there_and_leaves_there_what_it_makes(tmp_path):
    asked, key = work(tmp_path, address=f"file://{tmp_path}/far"), CELL.key
    with node.store_for(asked, key) as store:
        checkpoint, model = store.checkpoint_path(key), store.model_path(key)
        assert not checkpoint.exists()
        for path, text in ((checkpoint, "half"), (model / "weights", "whole")):
            path.parent.mkdir(parents=True)
            path.write_text(text)
    with node.store_for(asked, key) as another:
        assert another.folder != store.folder
        assert another.checkpoint_path(key).read_text() == "half"
    assert (tmp_path / "far" / "models" / key / "weights").read_text() == "whole"


def test_nodes_that_share_a_host_are_told_apart():
    found = [Node("a" * 9, "left", 1, 0, 0), Node("b" * 9, "right", 1, 0, 0), Node("c" * 9, "right", 1, 0, 0)]
    assert list(cluster.names(found).values()) == ["left", "right/bbbbbb", "right/cccccc"]


# a cluster that is made up: its nodes, and the kinds of their machines

CPUS = {"a": 2, "b": 2, "c": 4, "d": 2, "e": 1}
FOUND = [Node(name, name, cpus, 0.0, 1e9) for name, cpus in CPUS.items()]
MACHINES = {name: {"cpu": "new" if name == "c" else "old"} for name in CPUS}  # Ray has a part of that of e


@pytest.fixture
def made_up(monkeypatch):
    """An executor on nodes that are not there."""

    def answers(question, found, *inputs):
        kinds = {each.id: cluster.kind_of(MACHINES[each.id]) for each in found}
        return kinds if question is cluster.kind else {each.id: cluster.software() for each in found}

    monkeypatch.setattr(cluster, "connect", lambda address: None)
    monkeypatch.setattr(cluster, "nodes", lambda: FOUND)
    monkeypatch.setattr(cluster, "answers", answers)
    return Ray(slots=2, timeout=60)


def store_with(folder, machine):
    store = Store(folder)
    if machine:
        store.put(
            {
                **{"key": CELL.key, "kind": "bench", "version": CELL.version, "spec": CELL.to_json()},
                **{"status": "ok", "reason": "", "result": {}, "measured": MEASURED, "machine": machine},
            }
        )
    return store


def test_every_node_has_its_runs(made_up):
    assert made_up.slots == 2 * len(FOUND)


@pytest.mark.parametrize(
    ("before", "chosen", "notes"),
    [
        ({}, {"a", "b", "d"}, 0),
        ({"cpu": "new", "threads": 7, "fingerprint": "any"}, {"c"}, 0),
        ({"cpu": "gone"}, {"a", "b", "d"}, 1),
    ],
)
def test_what_is_timed_has_whole_nodes_of_one_kind(made_up, tmp_path, before, chosen, notes):
    told = []
    options = made_up.timing_options(store_with(tmp_path, before), told.append)
    assert options == {**options, **cluster.only_on([each for each in FOUND if each.id in chosen])}
    assert options["num_cpus"] == {each.cpus for each in FOUND if each.id in chosen}.pop()
    assert len(told) == notes
    assert made_up.timing_options(store_with(tmp_path, {"cpu": "new"}), told.append) == options


def test_what_is_timed_waits_for_no_node_of_another_kind(made_up, tmp_path, monkeypatch):
    made_up.timing_options(store_with(tmp_path, {"cpu": "new"}), print)
    monkeypatch.setattr(cluster, "nodes", lambda: [each for each in FOUND if each.id != "c"])
    record = made_up.run(CELL, Store(tmp_path), print)
    assert record["status"] == "failed"
    assert "no node of the kind" in record["reason"]


def test_a_run_takes_the_cpus_of_its_threads_and_memory_and_no_gpu(made_up):
    made_up.memory = 1e9
    options = made_up.options(changed(CELL, place={"threads": 3}), ray_executor.Course())
    assert (options["num_cpus"], options["num_gpus"], options["memory"]) == (3.0, 0.0, 1e9)


@pytest.mark.parametrize("place", [{"threads": 5}, {"device": "cuda"}])
def test_a_run_that_no_node_can_take_is_refused_unless_more_nodes_come(made_up, place):
    spec = changed(CELL, place=place)
    with pytest.raises(ValueError, match="no node of the Ray cluster has what a run takes"):
        made_up.options(spec, ray_executor.Course())
    made_up.nodes = len(FOUND) + 1
    assert made_up.options(spec, ray_executor.Course())["num_gpus"] == (spec.place.device == "cuda")


def test_only_a_new_step_ends_a_row_of_losses():
    course = ray_executor.Course(losses=2, furthest=50)
    course.reach(50)
    assert course.losses == 2
    course.reach(51)
    assert (course.losses, course.furthest) == (0, 51)


def test_a_cluster_without_nodes_is_refused_unless_some_come(made_up, monkeypatch):
    monkeypatch.setattr(cluster, "nodes", lambda: [])
    with pytest.raises(ValueError, match="has no node with CPUs"):
        Ray(timeout=60)
    assert Ray(slots=3, timeout=60, nodes=2).slots == 6


def test_a_cluster_with_other_software_is_refused(made_up, monkeypatch):
    monkeypatch.setattr(cluster, "answers", lambda *inputs: {"a": {"torch": "1.0"}})
    with pytest.raises(ValueError, match=r"'a' has .*torch 1.0 and not"):
        Ray(timeout=60)
