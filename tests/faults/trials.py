"""Trials of each kind of fault: each gives what was lost or wrong by it, "" for nothing."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from corruption import corrupt

from faults.disturbances import damaged_cache, killed_command, stopped_clock, unruly_plugin
from faults.inputs import malformed_inputs
from faults.kept import finished, lost
from faults.process import (
    KILLED,
    Bench,
    at_step,
    at_write,
    cut_and_die,
    device_exhausted,
    exhaust,
    fill_disk,
    limit_files,
    no_memory,
)
from subquad import checkpoint
from subquad.experiments.predictor import load_model
from subquad.records import Store

Trial = Callable[[Bench, random.Random, Path], Iterator[str]]

MOST_KILLS = 4  # of one comparison, before it is left alone


def again(bench: Bench, store: Store, before: dict[str, bytes]) -> str:
    """What is lost once the comparison was started again."""
    status, said = bench.start(store)
    return (
        lost(store, bench.whole, before) if status == 0 else f"ended with {status} when started again: {said}"
    )


def killed(bench: Bench, chance: random.Random, folder: Path, *, in_writes: bool) -> Iterator[str]:
    """A comparison killed several times; each time it goes on from what there is."""
    store, before = Store(folder), {}
    results: list[str] = []
    for _ in range(MOST_KILLS):
        if in_writes:
            status, said = bench.start(store, at_write(chance.randint(1, bench.writes), cut_and_die))
        else:
            status, said = bench.start(store, after=chance.uniform(0, bench.seconds))
        if status == 0:  # it was done before
            break
        kept = finished(store)
        gone = any(kept.get(key) != content for key, content in before.items())
        results.append(
            said or (f"ended with {status}" if status != KILLED else "a record is gone" if gone else "")
        )
        before = kept
    end = again(bench, store, before)
    yield from (result or end for result in results)


def killed_in_a_write(bench: Bench, chance: random.Random, folder: Path) -> Iterator[str]:
    return killed(bench, chance, folder, in_writes=True)


def killed_at_any_time(bench: Bench, chance: random.Random, folder: Path) -> Iterator[str]:
    return killed(bench, chance, folder, in_writes=False)


def full_disk(bench: Bench, chance: random.Random, folder: Path) -> Iterator[str]:
    """One write fails, or the system lets no file grow; it is said in one line, and nothing is lost."""
    store = Store(folder)
    if chance.random() < 0.5:
        fault = at_write(chance.randint(1, bench.writes), fill_disk)
    else:
        fault = limit_files(chance.randint(100, 20_000))
    status, said = bench.start(store, fault)
    before = finished(store)
    end = again(bench, store, before)
    if len(before) < len(bench.specs):  # or it was not full before the end
        yield end if status in {0, 2} and "\n" not in said else f"ended with {status}: {said}"


def out_of_memory(bench: Bench, chance: random.Random, folder: Path) -> Iterator[str]:
    """A fit runs out of memory: its record says so, and started again it goes on."""
    store = Store(folder)
    fault = chance.choice((exhaust, device_exhausted, no_memory))
    status, said = bench.start(store, at_step(chance.randint(1, 16), fault))
    records = [record for spec in bench.specs if (record := store.get(spec.key)) is not None]
    starved = [record for record in records if record["status"] == "out of memory"]
    end = again(bench, store, finished(store))
    wrong = status or len(starved) != 1 or "\n" in starved[0]["reason"]
    yield f"ended with {status} and {[record['status'] for record in records]}: {said}" if wrong else end


def damaged_record(bench: Bench, chance: random.Random, folder: Path) -> Iterator[str]:
    shutil.copytree(bench.whole.folder, folder)
    path = chance.choice(sorted((folder / "records").iterdir()))
    others = {key: content for key, content in finished(bench.whole).items() if key != path.stem}
    how = corrupt(path, chance)
    end = again(bench, Store(folder), others)
    yield end and f"{how}: {end}"


def damaged_checkpoint(bench: Bench, chance: random.Random, folder: Path) -> Iterator[str]:
    """Of a fit that was interrupted before its last steps."""
    store = Store(folder)
    status, _ = bench.start(store, at_step(chance.choice((6, 14)), no_memory))
    (path,) = (folder / "checkpoints").glob("*.safetensors")
    assert status == 0
    assert checkpoint.read(path) is not None
    how = corrupt(path, chance)
    end = again(bench, store, finished(store))
    yield end and f"{how}: {end}"


def damaged_model(bench: Bench, chance: random.Random, folder: Path) -> Iterator[str]:
    """An exported model is refused in one line that names it, or is read."""
    shutil.copytree(chance.choice(sorted((bench.whole.folder / "models").iterdir())), folder)
    how = corrupt(chance.choice(sorted(folder.iterdir())), chance)
    try:
        load_model(folder)
    except ValueError as error:
        yield "" if str(folder) in str(error) and "\n" not in str(error) else f"{how}: {error}"
    else:
        yield ""


class Kind(NamedTuple):
    """Trials of one kind, and how many comparisons are disturbed by it unless it is said."""

    trial: Trial  # each result of one is of one fault
    comparisons: int = 30


KINDS = {
    "killed in a write": Kind(killed_in_a_write),
    "killed at any time": Kind(killed_at_any_time),
    "full disk": Kind(full_disk),
    "out of memory": Kind(out_of_memory),
    "damaged record": Kind(damaged_record),
    "damaged checkpoint": Kind(damaged_checkpoint),
    "damaged model": Kind(damaged_model),
    "malformed input": Kind(malformed_inputs, 15),
    "killed command": Kind(killed_command, 5),
    "plug-in": Kind(unruly_plugin, 4),
    "damaged cache": Kind(damaged_cache, 10),
    "stopped clock": Kind(stopped_clock, 5),
}


def attempt(bench: Bench, name: str, seed: int, folder: Path) -> list[str]:
    """The results of one comparison that is disturbed so: what was lost or wrong by each fault."""
    results = list(KINDS[name].trial(bench, random.Random(f"{name} {seed}"), folder))
    shutil.rmtree(folder, ignore_errors=True)
    return results
