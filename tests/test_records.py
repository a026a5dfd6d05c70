"""Records are whole, are found by what was asked, and are written by one process at a time."""

import json
import subprocess
import sys

import pytest

from subquad.records import Store, key, read_json, write_whole

CLAIM_AND_WAIT = """
import sys
from pathlib import Path
from subquad.records import Store
with Store(Path(sys.argv[1])).claim("k") as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def holder(store):
    """Another process that has claimed the run "k"."""
    command = [sys.executable, "-c", CLAIM_AND_WAIT, str(store.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_key_depends_on_what_is_asked_and_not_on_its_order():
    asked = {"attention": "linear", "length": 512}
    assert key("fit", 1, asked) == key("fit", 1, dict(reversed(asked.items())))
    assert len({key("fit", 1, asked), key("fit", 2, asked), key("bench", 1, asked), key("fit", 1, {})}) == 4


def test_a_record_comes_back_by_its_key(store):
    record = {"key": "k", "kind": "fit", "status": "ok", "result": {"test": {"auc": 0.1 + 0.2}}}
    store.put(record)
    assert store.get("k") == record
    assert store.get("other") is None
    assert store.read(["other", "k"]) == [record]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(store):
    path = store.folder / "file"
    path.mkdir(parents=True)  # nothing can be written over a folder
    with pytest.raises(OSError, match="file"):
        write_whole(path, b"after")
    assert list(store.folder.iterdir()) == [path]


def test_a_number_that_is_none_is_not_written(store):
    with pytest.raises(ValueError, match="Out of range"):
        store.put({"key": "k", "result": float("nan")})
    assert store.get("k") is None


def test_a_damaged_record_is_named(store):
    write_whole(store.record_path("k"), b"{")
    with pytest.raises(ValueError, match=r"records/k.json' is not a JSON file .* delete it"):
        store.get("k")
    write_whole(store.record_path("k"), json.dumps([]).encode())
    with pytest.raises(ValueError, match="holds no JSON object"):
        read_json(store.record_path("k"))


def test_a_folder_without_a_comparison_says_what_to_name(store):
    with pytest.raises(ValueError, match=r"no comparison in .*runs.*--out"):
        store.get_comparison()


def test_a_run_in_another_process_hands_cannot_be_claimed(store, holder):
    with store.claim("k") as mine, store.claim("another") as free:
        assert (mine, free) == (False, True)


def test_a_dead_process_claim_lapses(store, holder):
    holder.kill()
    holder.wait()
    with store.claim("k") as mine:
        assert mine


def test_a_claim_ends_with_its_block(store):
    for _ in range(2):
        with store.claim("k") as mine:
            assert mine
