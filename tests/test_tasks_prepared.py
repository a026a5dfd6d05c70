"""Data sets that are made ahead: the same as those made on the spot, whatever happens in between."""

import json
import threading
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import jpeg, pictures, reviews, stored

from subquad import tasks
from subquad.experiments.comparison import plan
from subquad.experiments.config import Comparison
from subquad.experiments.preparation import prepare, quiet
from subquad.experiments.rows import task_of
from subquad.fields import SPLITS
from subquad.task import Dataset, SupervisedData
from subquad.tasks import BUILTIN
from subquad.tasks.image import CIFAR
from subquad.tasks.listops import ListOps
from subquad.tasks.part_folder import PartFolder
from subquad.tasks.pathfinder import Pathfinder
from subquad.tasks.preparable import DataPart, Preparable
from subquad.tasks.prepared import Entry, entries
from subquad.tasks.recall import Recall
from subquad.tasks.text import IMDB

COUNTS = {"train": 150, "validation": 20, "test": 40}
TINY: dict[str, dict[str, Any]] = {
    "listops": {**COUNTS, "above": 5, "below": 60, "depth": 4},
    "pathfinder": {"train": 20, "validation": 4, "test": 8, "contour": 3},
    "recall": {**COUNTS, "tokens": 24, "pairs": 5, "keys": 8},
    "copying": {**COUNTS, "tokens": 24, "items": 6},
    "needle": {**COUNTS, "tokens": 24, "distance": 15, "alphabet": 6},
    "adding": {**COUNTS, "tokens": 24},
    "text": {"cut": 60},
    "text, bpe": {"cut": 40, "tokens": "bpe", "vocabulary": 300},
    "image": {},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBQUAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small data sets in the place of IMDb and CIFAR-10."""
    stored(tmp_path, IMDB.file, "text", train=reviews(120, 0), test=reviews(40, 1))
    images = {
        split: {"jpeg": [*map(jpeg, table["img"])], "label": table["label"]}
        for split, table in {"train": pictures(60, 0), "test": pictures(20, 1)}.items()
    }
    stored(tmp_path, CIFAR.file, "jpeg", **images)
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path))
    return tmp_path


def listops(**options: Any) -> tuple[ListOps, dict[str, Any]]:
    """A task of some parts, with all its options."""
    chosen = {**tasks.options(ListOps), **TINY["listops"], "train": 4000, **options}
    return ListOps(**chosen), chosen


def made(parts: Iterable[DataPart]) -> dict[str, bytes]:
    every = list(parts)
    return {name: b"".join(part.arrays[name].tobytes() for part in every) for name in every[0].arrays}


def test_every_builtin_task_whose_examples_are_made_is_tried_here():
    preparable = {name for name in BUILTIN if issubclass(tasks.find(name), Preparable)}
    assert preparable == {name.partition(",")[0] for name in TINY}


@pytest.mark.parametrize("task", TINY)
def test_a_prepared_data_set_is_the_one_that_is_made_on_the_spot_in_every_respect(task: str, published: Path):
    name, options = task.partition(",")[0], TINY[task]
    fresh = tasks.load(name, **options)
    folder = tasks.prepare(name, **options)
    assert folder is not None
    for path in folder.glob("*.bin"):
        assert path.stat().st_size
    assert_same(fresh, tasks.load(name, **options))


def assert_same(one: Dataset, other: Dataset) -> None:
    assert isinstance(one, SupervisedData)
    assert isinstance(other, SupervisedData)
    assert one.fingerprint == other.fingerprint
    for attribute in ("fields", "target", "objective", "summary", "encoding", "longest"):
        assert getattr(one, attribute) == getattr(other, attribute), attribute
    for split in SPLITS:
        assert np.array_equal(one.truth(split), other.truth(split))
        assert np.array_equal(one.group(split), other.group(split))
        both = (
            data.batches(split, size=16, length=data.longest, seed=1, epoch=2, shuffle=True)
            for data in (one, other)
        )
        for ours, theirs in zip(*both, strict=True):
            assert ours.offset is theirs.offset is None
            tensors = zip(chain(ours.inputs, ours[1:4]), chain(theirs.inputs, theirs[1:4]), strict=True)
            assert all(torch.equal(a, b) for a, b in tensors)
            solved = one.oracle(ours), other.oracle(theirs)
            assert (solved[0] is None) == (solved[1] is None)
            if solved[0] is not None and solved[1] is not None:
                assert torch.equal(solved[0], solved[1])
    assert one.baselines() == other.baselines()
    for baseline in one.baselines():
        ours, theirs = (data.baseline(baseline.name, length=data.longest, seed=0) for data in (one, other))
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("task", [listops()[0], Recall(train=9000, tokens=24, pairs=3, keys=8)])
def test_parts_go_on_behind_any_of_them_with_the_same_bytes(task: Preparable):
    every = list(task.parts())
    assert len(every) > 2
    for cut in range(len(every)):
        rest = list(task.parts(every[:cut]))
        assert made(every[:cut] + rest) == made(every)
        assert len(rest) == len(every) - cut


def test_pictures_are_the_same_bytes_in_one_go_and_in_two(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("subquad.tasks.pathfinder.PIXELS", 8 * 1024)
    task = Pathfinder(train=20, validation=4, test=4, contour=3)
    every = list(task.parts())
    assert len(every) == 4
    assert made([*every[:2], *task.parts(every[:2])]) == made(every)


def test_an_interruption_loses_one_part_and_no_more():
    task, options = listops()
    whole = len(list(task.parts()))
    told: list[float | None] = []

    def interrupt(share: float | None) -> None:
        told.append(share)
        if len(told) == 3:  # two parts are written
            raise KeyboardInterrupt

    entry = Entry.of(task, options)
    with pytest.raises(KeyboardInterrupt):
        entry.prepare(task, options, interrupt)
    assert entry.read() is None
    again: list[float | None] = []
    entry.prepare(task, options, again.append)
    assert again[0] == told[-1]
    assert len(again) == 1 + whole - 2
    assert again[-1] == 1
    assert_same(task.load(), tasks.load("listops", **options))


def test_what_a_killed_process_was_writing_is_cut_off():
    task, options = listops()
    entry = Entry.of(task, options)
    stored = PartFolder(entry.path)
    parts = task.parts()
    stored.append(next(parts))
    for path in entry.path.glob("*.bin"):
        path.write_bytes(path.read_bytes() + b"half a part")
    with (entry.path / "parts").open("ab") as file:
        file.write(b'01234567 {"arrays"')
    entry.prepare(task, options, lambda share: None)
    assert_same(task.load(), tasks.load("listops", **options))


@pytest.mark.parametrize("file", ["symbols.bin", "answer.bin", "length.bin", "parts"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
def test_a_flipped_byte_is_noticed_once_and_the_data_are_made_anew(file: str, place: float):
    options = TINY["listops"]
    before = tasks.load("listops", **options)
    folder = tasks.prepare("listops", **options)
    assert folder is not None
    content = bytearray((folder / file).read_bytes())
    content[int(place * len(content))] ^= 1
    (folder / file).write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged: .*; it is made anew, and kept as listops-.*damaged"):
        after = tasks.load("listops", **options)
    assert_same(before, after)
    assert_same(before, tasks.load("listops", **options))
    assert (folder.with_name(f"{folder.name}.damaged") / file).exists()


def test_a_file_that_was_cut_or_lost_is_noticed():
    options = TINY["listops"]
    for harm in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])):
        folder = tasks.prepare("listops", **options)
        assert folder is not None
        harm(folder / "symbols.bin")
        with pytest.warns(UserWarning, match="symbols.bin"):
            tasks.load("listops", **options)


def test_an_array_without_a_number_is_kept_too(tmp_path: Path):
    part = DataPart({"none": np.empty((0, 3), np.int32), "some": np.arange(4.0)}, {}, 1.0)
    PartFolder(tmp_path / "folder").append(part)
    read = PartFolder(tmp_path / "folder").read()
    assert read.arrays["none"].shape == (0, 3)
    assert np.array_equal(read.arrays["some"], part.arrays["some"])


def test_parts_of_different_kinds_are_refused(tmp_path: Path):
    stored = PartFolder(tmp_path / "folder")
    stored.append(DataPart({"a": np.zeros(3, np.uint8)}, {}, 0.5))
    with pytest.raises(ValueError, match="parts differ"):
        stored.append(DataPart({"a": np.zeros(3, np.int64)}, {}, 1.0))


def test_whatever_makes_other_data_has_a_place_of_its_own(published: Path, monkeypatch: pytest.MonkeyPatch):
    task, options = listops()
    places = [Entry.of(task, options), Entry.of(*listops(seed=1)), Entry.of(*listops(depth=3))]
    text = tasks.build("text"), tasks.every_option(tasks.find("text"), {})
    assert isinstance(text[0], Preparable)
    places += [Entry.of(text[0], text[1])]
    (published / IMDB.file).unlink()
    (published / IMDB.file).parent.rmdir()
    stored(published, IMDB.file, "text", train=reviews(120, 2), test=reviews(40, 1))
    places += [Entry.of(text[0], text[1])]
    monkeypatch.setattr("subquad.tasks.prepared.code", lambda cls: "edited")
    places += [Entry.of(task, options)]
    assert len({entry.path for entry in places}) == len(places)


def test_a_size_and_its_options_are_one_data_set():
    chosen = {"size": "quick", "train": 50, "test": 30}
    quick = {**Recall.traits.sizes["quick"], "train": 50, "test": 30}
    assert tasks.prepare("recall", **chosen) == tasks.prepare("recall", **quick)


def test_two_processes_do_not_make_the_same_data_at_once():
    task, options = listops()
    entry = Entry.of(task, options)
    begun, goes_on = threading.Event(), threading.Event()
    told: list[float | None] = []

    def slowly(share: float | None) -> None:
        begun.set()
        goes_on.wait()

    def other(share: float | None) -> None:
        told.append(share)
        goes_on.set()

    first = threading.Thread(target=entry.prepare, args=(task, options, slowly))
    first.start()
    begun.wait()
    entry.prepare(task, options, other)
    first.join()
    assert told == [None]  # it waited, and made nothing


@pytest.mark.parametrize("task", ["text", "image"])
def test_what_another_machine_prepared_is_read_where_its_files_are_not(
    task: str, published: Path, monkeypatch: pytest.MonkeyPatch
):
    there = tasks.load(task, **TINY[task])
    folder = tasks.prepare(task, **TINY[task])
    assert folder is not None
    for file in published.glob("**/*.parquet"):
        file.unlink()
    with pytest.raises(tasks.DataError):
        tasks.load(task, **TINY[task])
    monkeypatch.setenv("SUBQUAD_PREPARED", f"{folder.name}")
    assert_same(there, tasks.load(task, **TINY[task]))


def test_what_another_machine_prepared_of_other_options_is_not_read(monkeypatch: pytest.MonkeyPatch):
    folder = tasks.prepare("recall", **TINY["recall"])
    assert folder is not None
    monkeypatch.setenv("SUBQUAD_PREPARED", folder.name)
    other = {**TINY["recall"], "pairs": 4}
    monkeypatch.setattr(Recall, "parts", lambda *_: pytest.fail("was made"))
    tasks.load("recall", **TINY["recall"])
    with pytest.raises(pytest.fail.Exception):
        tasks.load("recall", **other)


def test_what_nobody_prepared_is_made_and_not_kept(cache: Path):
    tasks.load("listops", **TINY["listops"])
    assert not cache.exists()


def test_where_nothing_can_be_kept_a_warning_says_what_that_costs(cache: Path):
    cache.write_text("a file")
    with pytest.warns(UserWarning, match="small: every run makes its data anew, since they cannot be"):
        prepare({"small": task_of("adding:train=50")}, tell=quiet)
    tasks.load("adding", train=50)


def test_a_comparison_prepares_its_data_once_what_can_be_refused_is_refused(cache: Path):
    config = Comparison(tasks=("adding:train=50,tokens=24",), attention=("linformer:rank=0",), bench=False)
    with pytest.raises(ValueError, match="rank"):
        plan(config)
    assert not cache.exists()
    plan(replace(config, attention=("linear",)))
    (entry,) = entries()
    assert entry.described()["done"] == 1


def test_a_task_that_reads_its_files_every_time_has_nothing_to_prepare():
    assert tasks.prepare("transactions") is None


def test_a_data_set_says_what_it_is_and_can_be_cleared(cache: Path):
    folder = tasks.prepare("adding", **TINY["adding"])
    (entry,) = entries()
    described = entry.described()
    assert described["task"] == "adding"
    assert described["options"] == {**tasks.options(tasks.find("adding")), **TINY["adding"]}
    assert described["folder"] == str(folder)
    assert described["bytes"] == sum(path.stat().st_size for path in entry.path.iterdir())
    assert described["done"] == 1
    entry.clear()
    assert not list(cache.iterdir())


def test_the_largest_probes_are_drawn_without_so_many_numbers_at_once(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []

    class Counted(Recall):
        def draw(self, bits: Any, count: int) -> Any:
            drawn.append(count * self.tokens)
            return super().draw(bits, count)

    part = next(iter(Counted(train=900, tokens=16_384).parts()))
    assert max(drawn) <= 2**22
    assert part.arrays["symbols"].dtype == np.uint8


def test_the_command_prepares_lists_and_clears(cache: Path, monkeypatch: Any, capsys: Any):
    from subquad.__main__ import main

    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["subquad", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(main())
        assert not ended.value.code
        return capsys.readouterr().out

    text = "adding:train=50,tokens=24"
    assert call("prepare", text, "transactions").splitlines() == [
        f"{text}: 0.1 MB in {next(cache.glob('adding-*[!k]'))}",
        "transactions: read from its files",
    ]
    (listed,) = json.loads(call("list", "--json"))
    assert (listed["asked"], listed["done"]) == (text, 1.0)
    assert text in call("list")
    assert call("clear", "needle").startswith("0 data sets deleted")
    assert call("clear", "adding").startswith("1 data set deleted")
    assert json.loads(call("list", "--json")) == []
