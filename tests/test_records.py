"""Records are whole, are found by what was asked, and are written by one process at a time."""

import json
import os
import subprocess
import sys
import time

import pytest
import report_samples as made_up

from subquad.documents import Damaged
from subquad.files import clear_drafts, host, set_aside, write_whole
from subquad.records import Store, comparison_key, key

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


SETTING = made_up.comparison(made_up.ROWS[:1], seeds=1)
RECORD = made_up.baseline("majority", 0, SETTING, score=0.1 + 0.2)


def test_a_record_comes_back_by_its_key(store):
    store.put(RECORD)
    assert store.get(RECORD["key"]) == RECORD
    assert store.get("other") is None
    assert store.read(["other", RECORD["key"]]) == [RECORD]


def test_what_is_no_record_is_not_written(store):
    with pytest.raises(ValueError, match=r"result\.test\.auc: should be a finite number .*, not nan"):
        store.put({**RECORD, "result": {"test": {"auc": float("nan")}}})
    with pytest.raises(ValueError, match=r"tasks: is missing"):
        store.put_comparison(SETTING)
    assert store.get(RECORD["key"]) is None
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"records/\w+.json' is damaged: it is not a JSON file .*; its `subquad compare` again"),
        (b"[]", "holds no JSON object"),
        (b'{"kind": "fit"}', "it has version None"),
        (b'{"version": 3}', "it has version 3, and this version of subquad reads 4; its `subquad compare`"),
        (b'{"version": 4, "kind": "fit"}', "status: is missing"),
        (b'{"a": 1e999}', "not a JSON file"),
        (b'{"a": 99999999999999999999}', "a whole number has more than 64 bits"),
        (b'{"a": "\\ud800"}', "not a JSON file"),
        (b'{"a": %s}' % (b"[" * 40 + b"]" * 40), "more than 32 levels"),
    ],
)
def test_a_damaged_record_is_named_with_its_field_and_the_remedy(store, content, message):
    write_whole(store.record_path(RECORD["key"]), content)
    with pytest.raises(Damaged, match=message):
        store.read([RECORD["key"]])


@pytest.mark.parametrize("edited", ["result", "seconds", "spec", "digest", "more"])
def test_a_record_that_was_edited_into_another_that_might_be_one_is_damaged(store, edited):
    store.put(RECORD)
    path = store.record_path(RECORD["key"])
    record = json.loads(path.read_text())
    others = {"result": {"test": {"auc": 0.9, "loss": 0.1}}, "seconds": 1.5, "digest": "0" * 64, "more": 1}
    path.write_text(json.dumps({**record, edited: others.get(edited, {**record["spec"], "seed": 7})}))
    with pytest.raises(Damaged, match="it is not as it was written"):
        store.get(RECORD["key"])


def test_a_record_from_before_there_were_digests_is_read(store):
    write_whole(store.record_path(RECORD["key"]), json.dumps(RECORD).encode())
    assert store.get(RECORD["key"]) == RECORD


def test_a_record_under_another_key_is_damaged(store):
    store.put(RECORD)
    other = "0" * 16
    store.record_path(RECORD["key"]).rename(store.record_path(other))
    with pytest.raises(Damaged, match="key: should be that of the file"):
        store.get(other)


def test_a_record_of_another_metric_or_kind_than_the_comparison_is_damaged(store):
    comparison = store_with_one_record(store)
    with pytest.raises(Damaged, match="has no 'mae', by which the comparison judges"):
        store.runs(with_task(comparison, metric="mae"))
    with pytest.raises(Damaged, match="the comparison has no such run"):
        store.runs(with_task(comparison, keys={"fit": [RECORD["key"]], "baseline": []}))


def with_task(comparison, **fields):
    """The comparison, its one task otherwise."""
    (task,) = comparison["tasks"]
    return {**comparison, "tasks": [{**task, **fields}]}


def store_with_one_record(store):
    made_up.write(store.folder, SETTING, [RECORD])
    return store.get_comparison()


def test_a_comparison_is_found_by_its_key_after_another_has_become_the_latest(store):
    first = store_with_one_record(store)
    second = with_task(first, keys={"fit": [], "baseline": []})
    store.put_comparison(second)
    assert store.get_comparison() == store.get_comparison(comparison_key(second)) == second
    assert store.get_comparison(comparison_key(first)) == first
    assert [store.is_latest(comparison_key(each)) for each in (first, second)] == [False, True]


def test_an_unknown_comparison_is_answered_with_those_there_are(store):
    known = comparison_key(store_with_one_record(store))
    with pytest.raises(ValueError, match=rf"no comparison 'other' in .*; there are {known}"):
        store.get_comparison("other")


def test_a_folder_from_before_comparisons_had_keys_has_its_latest(store):
    comparison = store_with_one_record(store)
    store.comparison_path(comparison_key(comparison)).unlink()
    assert store.get_comparison() == store.get_comparison(comparison_key(comparison)) == comparison


def test_a_comparison_under_the_key_of_another_is_damaged(store):
    comparison = store_with_one_record(store)
    store.comparison_path(comparison_key(comparison)).rename(store.comparison_path("0" * 16))
    with pytest.raises(Damaged, match="keys: are those of another comparison"):
        store.get_comparison("0" * 16)


def test_a_folder_without_a_comparison_says_what_to_name(store):
    with pytest.raises(ValueError, match=r"no comparison in .*runs.*--out"):
        store.get_comparison()


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(store):
    path = store.folder / "file"
    path.mkdir(parents=True)  # nothing can be written over a folder
    with pytest.raises(OSError, match="file"):
        write_whole(path, b"after")
    assert list(store.folder.iterdir()) == [path]


def test_a_full_disk_is_reported_with_the_file_that_it_had_no_room_for(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*/name"):
        write_whole(tmp_path / "name", b"content")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def dead():
    """The id of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("where", "days", "stays"),
    [("here", 0, False), ("elsewhere", 0, True), ("elsewhere", 2, False), ("living", 0, True)],
)
def test_the_next_writer_clears_the_drafts_of_the_dead_and_no_other(tmp_path, dead, where, days, stays):
    at = "0" * 8 if where == "elsewhere" else host()
    draft = tmp_path / f".name.json.draft-{at}-{os.getpid() if where == 'living' else dead}-1"
    draft.write_bytes(b"half")
    long_ago = time.time() - days * 24 * 3600
    os.utime(draft, (long_ago, long_ago))
    write_whole(tmp_path / "other", b"")
    assert draft.exists() == stays


def test_only_drafts_are_cleared(tmp_path):
    for name in (".name.2024-01", ".name.draft-2024", "name.draft-00000000-1-1", ".draft-00000000-1-1"):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (0, 0))
    clear_drafts(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_what_is_set_aside_replaces_nothing(tmp_path):
    kept = []
    for content in (b"1", b"2", b"3"):
        write_whole(tmp_path / "name", content)
        kept.append(set_aside(tmp_path / "name"))
    assert [path.read_bytes() for path in kept] == [b"1", b"2", b"3"]
    assert {path.name for path in kept} == {"name.damaged", "name.damaged-1", "name.damaged-2"}


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
