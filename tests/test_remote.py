"""A folder of records at an address: what is written goes there, and what is there is read."""

import pytest
from runs_sample import CELL, MEASURED

from subquad.executors import Local
from subquad.experiments.comparison import Plan, run
from subquad.experiments.config import Comparison
from subquad.experiments.grid import Observer, run_missing
from subquad.records import Store
from subquad.remote import Remote

RECORD = {
    **{"key": CELL.key, "kind": "bench", "version": CELL.version, "spec": CELL.to_json()},
    **{"status": "ok", "reason": "", "result": {}, "measured": MEASURED},
}


@pytest.fixture(params=["file", "s3"])
def address(request, tmp_path, monkeypatch):
    """Of an empty folder: on this machine, or in a bucket of an S3 server of this process."""
    if request.param == "file":
        yield f"file://{tmp_path}/far"
        return
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    s3fs = pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/far"
    s3fs.S3FileSystem().rm("bucket", recursive=True)
    server.stop()


def test_a_record_that_is_put_is_there_for_whoever_comes_later(address):
    Store.at(address).put(RECORD)
    assert Store.at(address).get(CELL.key) == RECORD
    assert Store.at(f"{address}/within").get(CELL.key) is None


def test_a_record_that_is_put_again_replaces_the_other(address):
    for seconds in (1.0, 2.0):
        store = Store.at(address)
        store.put({**RECORD, "seconds": seconds})
    assert Store.at(address).get(CELL.key) == {**RECORD, "seconds": 2.0}


def test_a_model_is_shared_with_all_its_files_and_a_checkpoint_goes_with_its_run(address):
    store, other = Store.at(address), Store.at(address)
    model, checkpoint = store.model_path(CELL.key), store.checkpoint_path(CELL.key)
    (model / "part").mkdir(parents=True)
    (model / "part" / "weights").write_bytes(b"\0\1")
    (model / "config.json").write_text("{}")
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"half")
    for path in (model, checkpoint):
        store.share(path)
        other.fetch(other.folder / path.relative_to(store.folder))
    assert (other.model_path(CELL.key) / "part" / "weights").read_bytes() == b"\0\1"
    assert (other.model_path(CELL.key) / "config.json").read_text() == "{}"
    assert other.checkpoint_path(CELL.key).read_bytes() == b"half"
    assert Store.at(address).checkpoints() == {CELL.key}
    for _ in range(2):  # the second time there is none
        store.forget_checkpoint(CELL.key)
    assert Store.at(address).checkpoints() == set()
    third = Store.at(address)
    third.fetch(third.checkpoint_path(CELL.key))
    assert not third.checkpoint_path(CELL.key).exists()


def test_a_checkpoint_that_a_kill_left_behind_its_record_goes_with_the_next_command(address):
    store = Store.at(address)
    store.put(RECORD)
    store.checkpoint_path(CELL.key).parent.mkdir()
    store.checkpoint_path(CELL.key).write_bytes(b"half")
    store.share(store.checkpoint_path(CELL.key))
    run_missing([CELL], Store.at(address), executor=Local(timeout=600), observer=Observer())
    assert Store.at(address).checkpoints() == set()


def test_people_are_told_the_address_of_a_file_and_not_where_its_copy_is(address, tmp_path):
    store = Store.at(address)
    assert store.where(store.page_path("k")) == f"{address}/reports/k.html"
    assert Store(tmp_path).where(tmp_path / "report.html") == str(tmp_path / "report.html")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("memory://runs", "is not the same in all processes"),
        ("nonsense://runs", "cannot be reached: Protocol not known: nonsense"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(address, reason):
    with pytest.raises(ValueError, match=reason):
        Store.at(address)


def test_an_address_is_refused_for_runs_of_this_machine(tmp_path):
    store = Store.at(f"file://{tmp_path}/far")
    with pytest.raises(ValueError, match="give a folder, or --executor ray"):
        run(Plan(tasks=(), benches=(), folders=(), document={}), Comparison(), store, observer=Observer())


def test_nothing_is_written_outside_of_a_folder(tmp_path):
    class Sly:
        """Lists a file that is not below the folder that is asked for."""

        def invalidate_cache(self):
            pass

        def find(self, path):
            return [f"{path}/../../elsewhere"]

    remote = Remote(f"file://{tmp_path}/far")
    vars(remote)["files"] = Sly()
    with pytest.raises(OSError, match="leads outside of"):
        remote.pull(tmp_path / "near", "records")
