"""Trials of the command line: its processes are killed, its plug-ins misbehave, its clocks go wrong."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Protocol

from corruption import corrupt, replace_file
from own_sample import write

from faults.command import POLL_S, Command, Ended, Running
from faults.kept import finished, lost, records
from faults.unruly import WAYS
from subquad import checkpoint
from subquad.records import Record, Store

MOST_KILLS = 4  # of one comparison, before it is left alone
KILLED = "killed by signal 9, as the system does when memory runs out"
RECALL = "recall:tokens=24,pairs=5,keys=8,train=150,validation=20,test=40"
UNRULY_AT_ONCE = 6  # rows of a comparison
LONGEST_REASON = 500  # characters
MEMORY = 2**34  # bytes of addresses that a process may have
FROM_C = ["cc", "-shared", "-fPIC", "-O1"]


class Benches(Protocol):
    commands: "Commands"


class Commands:
    """The comparisons that are disturbed, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def own(self) -> Command:
        """On tables; the package of `unruly` is installed."""
        data = ["custom", "--data", str(write(self.folder / "tables"))]
        return Command(self.folder / "own", *data, "--length", "20", packages=self.packages)

    @cached_property
    def packages(self) -> Path:
        information = self.folder / "packages" / "unruly-1.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: unruly\nVersion: 1\n")
        (information / "entry_points.txt").write_text("[subquad.mechanisms]\nunruly = unruly:Unruly\n")
        shutil.copy(Path(__file__).with_name("unruly.py"), information.parent)
        return information.parent

    @cached_property
    def prepared(self) -> Command:
        """On data that are prepared."""
        return Command(self.folder / "prepared", RECALL)

    @cached_property
    def clock(self) -> Path:
        """A library that lets the wall clock go as it should not."""
        made = self.folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run([*FROM_C, "-o", made, source], check=True, capture_output=True)
        return made


def begun(command: Command, chance: random.Random, folder: Path, *, missing: int) -> Store:
    """A folder in which so many runs are to be done yet, a fit among them; the others are on record."""
    shutil.copytree(command.whole.folder, folder)
    store = Store(folder)
    (trained,) = (record["key"] for record in all_records(store) if record["kind"] == "fit")
    others = sorted(finished(store).keys() - {trained})
    for key in (trained, *chance.sample(others, missing - 1)):
        store.record_path(key).unlink()
    shutil.rmtree(folder / "models")
    return store


def again(command: Command, store: Store) -> str:
    """What is lost once the comparison was started again."""
    before = finished(store)
    return command.run(store).wrong(0) or lost(store, command.whole, before)


def killed_command(bench: Benches, chance: random.Random, folder: Path) -> Iterator[str]:
    """Its parent, one of its runs or all of it, several times; each time it goes on from what there is."""
    command = bench.commands.own
    store = begun(command, chance, folder, missing=2)
    before = finished(store)
    steps: dict[str, int] = {}
    results: list[str] = []
    for _ in range(MOST_KILLS):
        running = command.start(store)
        wait = until_a_checkpoint if chance.random() < 0.5 else until_some_time
        wait(running, store, chance.random() * command.seconds / 3)
        whom = kill(running, chance.choice(("parent", "run", "group", "all")))
        ended = running.end()
        if whom == "nobody":  # it was done before
            break
        kept = finished(store)
        if any(kept.get(key) != content for key, content in before.items()):
            what = "a record is gone"
        elif whom in {"run", "group"}:
            what = ended.wrong(0, 1) or ended_run(store, ended)
        else:
            what = "" if ended.status == -signal.SIGKILL else f"ended with {ended.status}"
        results.append(what or running.left() or backward(steps, store))
        before = kept
    end = again(command, store)
    yield from (result or end for result in results)


def until_some_time(running: Running, store: Store, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not running.over() and time.monotonic() < until:
        time.sleep(POLL_S)


def until_a_checkpoint(running: Running, store: Store, seconds: float) -> None:
    """Until one is written, and a moment more."""
    written = modified(store)
    while not running.over() and modified(store) == written:
        time.sleep(POLL_S)
    until_some_time(running, store, seconds % 1.0)


def modified(store: Store) -> dict[str, int]:
    found = {}
    for path in (store.folder / "checkpoints").glob("*"):
        with suppress(FileNotFoundError):  # its run has ended
            found[path.name] = path.stat().st_mtime_ns
    return found


def kill(running: Running, whom: str) -> str:
    """Whom it killed: all of the command where it has no run just now, and nobody where it has ended."""
    runs = running.processes(running=True)
    if running.over():
        return "nobody"
    match whom:
        case "parent":
            running.process.kill()
        case "run" if runs:
            running.kill(runs[:1])
        case "group" if runs:
            with suppress(ProcessLookupError):
                os.killpg(runs[0], signal.SIGKILL)
        case _:
            running.kill(running.processes())
            return "all"
    return whom


def ended_run(store: Store, ended: Ended) -> str:
    """What is wrong with a comparison of which one run was killed, at the last moment maybe."""
    unfinished = [record for record in all_records(store) if record["status"] != "ok"]
    if any(record["reason"] != KILLED for record in unfinished) or len(unfinished) > 1:
        return f"records: {[(record['status'], record['reason']) for record in unfinished]}"
    if bool(unfinished) != (ended.status == 1) or ended.told.count(KILLED) != len(unfinished):
        return f"ended with {ended.status} after {len(unfinished)} were killed: {ended.told[-300:]}"
    return ""


def all_records(store: Store) -> list[Record]:
    return store.read(path.stem for path in records(store))


def backward(steps: dict[str, int], store: Store) -> str:
    """Whether a fit is not as far as it was; how far it is."""
    for path in (store.folder / "checkpoints").glob("*.safetensors"):
        stored = checkpoint.read(path)
        assert stored
        step = stored[1]["course"]["step"]
        if step < steps.get(path.name, 0):
            return f"a fit fell back from step {steps[path.name]} to {step}"
        steps[path.name] = step
    return ""


def unruly_plugin(bench: Benches, chance: random.Random, folder: Path) -> Iterator[str]:
    """Mechanisms of another package beside one of ours, which is as it is without them."""
    command = bench.commands.own
    store = begun(command, chance, folder, missing=1)
    before = finished(store)
    ways = chance.sample(sorted(WAYS), UNRULY_AT_ONCE)
    rows = ",".join(f"unruly:how={way}" for way in ways)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
    running = command.start(store, "--attention", rows, "--timeout", f"{timeout(command):.0f}")
    resource.setrlimit(resource.RLIMIT_AS, limits)
    ended = running.end()
    other = ended.wrong(0, 1) or running.left() or lost(store, command.whole, before)
    reasons = {
        record["spec"]["mechanism"]["options"].get("how", "beget"): (record["status"], record["reason"])
        for record in all_records(store)
        if record["kind"] == "fit" and record["spec"]["mechanism"]["attention"] == "unruly"
    }
    for way in ways:
        yield other or unexplained(way, *reasons.get(way, ("missing", "")), ended)


def timeout(command: Command) -> float:
    """Seconds that no run takes but those that hang."""
    return 10.0 + 3 * max(record["seconds"] for record in all_records(command.whole))


def unexplained(way: str, status: str, reason: str, ended: Ended) -> str:
    """What is wrong with the row of a plug-in that misbehaves so; "" for nothing."""
    expected, words = EXPECTED[way]
    if (status, words in reason) != (expected, True):
        return f"{way}: it is {status!r}: {reason[:LONGEST_REASON]}"
    if len(reason) > LONGEST_REASON or len(reason.splitlines()) > 1 or not reason.isprintable():
        return f"{way}: its reason is no line: {reason[:LONGEST_REASON]!r}"
    return "" if status == "ok" or reason in ended.told else f"{way}: the terminal does not say {reason!r}"


EXPECTED = {  # status, and what its reason says
    "nan": ("not finite", "loss is nan at step"),
    "infinity": ("not finite", "loss is nan at step"),
    "shape": ("failed", "shape"),
    "nothing": ("failed", "None"),
    "lines": ("failed", "it is lost"),
    "wordless": ("failed", "RuntimeError"),
    "long": ("failed", "xxx"),
    "strange": ("failed", "[red]it[/red]"),
    "unspeakable": ("failed", "no word of it"),
    "interrupt": ("failed", "killed by signal 2 (Interrupt)"),
    "exit": ("failed", "ended with status 0"),
    "recursion": ("failed", "recursion"),
    "sleep": ("timeout", "not done after"),
    "busy": ("timeout", "not done after"),
    "stop": ("timeout", "not done after"),
    "abort": ("failed", "killed by signal 6 (Aborted)"),
    "segment": ("failed", "killed by signal 11 (Segmentation fault)"),
    "leave": ("failed", "ended with status 0"),
    "print": ("failed", "it printed more than"),
    "write": ("failed", "it printed more than"),
    "close": ("failed", "ended"),
    "beget": ("ok", ""),
    "tensors": ("out of memory", "memory"),
    "bytes": ("out of memory", "MemoryError"),
}


def damaged_cache(bench: Benches, chance: random.Random, folder: Path) -> Iterator[str]:
    """Prepared data: they are made anew, or it is said in one line."""
    command = bench.commands.prepared
    cache, kept = command.cache, command.folder / "kept"
    shutil.copytree(cache, kept)
    path = chance.choice(sorted(path for path in cache.rglob("*") if path.is_file()))
    how = f"{path.name}, {(corrupt if path.stat().st_size else replace_file)(path, chance)}"
    store = begun(command, chance, folder, missing=1)
    before = finished(store)
    ended = command.run(store)
    shutil.rmtree(cache)
    kept.rename(cache)
    if ended.status == 2:
        wrong = ended.wrong(2) or ("" if len(ended.told.splitlines()) == 1 else ended.told)
    else:
        wrong = ended.wrong(0) or lost(store, command.whole, before)
    yield wrong and f"{how}: {wrong}"


def stopped_clock(bench: Benches, chance: random.Random, folder: Path) -> Iterator[str]:
    """A run or the command is stopped, or the wall clock stands still or goes backward."""
    command = bench.commands.own
    store = begun(command, chance, folder, missing=2)
    wrong = chance.choice(CLOCKS)(bench.commands, command, store, chance)
    negative = [record for record in all_records(store) for number in numbers(record) if number < 0]
    yield wrong or ("a duration is negative" if negative else "") or again(command, store)


def stopped_run(commands: Commands, command: Command, store: Store, chance: random.Random) -> str:
    running = command.start(store, "--timeout", f"{timeout(command):.0f}")
    until_some_time(running, store, chance.uniform(0.1, 0.5) * command.seconds)
    while not (runs := running.processes(running=True)) and not running.over():
        time.sleep(POLL_S)
    for process in runs:
        os.kill(process, signal.SIGSTOP)
    ended = running.end()
    wrong = ended.wrong(0, 1) or running.left()
    timed_out = ended.told.count("timeout: not done after")  # 0: it had told its outcome when it was stopped
    return wrong or (ended.told if timed_out > len(runs) else "")


def stopped_command(commands: Commands, command: Command, store: Store, chance: random.Random) -> str:
    running = command.start(store)
    until_some_time(running, store, chance.uniform(0.1, 0.6) * command.seconds)
    running.process.send_signal(signal.SIGSTOP)
    time.sleep(chance.uniform(1, 5))
    running.process.send_signal(signal.SIGCONT)
    return running.end().wrong(0)


def wall_clock(how: str) -> Callable[[Commands, Command, Store, random.Random], str]:
    def compared(commands: Commands, command: Command, store: Store, chance: random.Random) -> str:
        environment = {"LD_PRELOAD": str(commands.clock), "SUBQUAD_CLOCK": how}
        return command.run(store, environment=environment).wrong(0)

    return compared


CLOCKS = (
    stopped_run,
    stopped_command,
    wall_clock("still"),
    wall_clock("backward"),
    wall_clock("jumping"),
)


def numbers(record: Record) -> Iterator[float]:
    """Durations, rates and amounts of a record."""
    within: list[object] = [record["seconds"], record["measured"]]
    while within:
        match within.pop():
            case dict() as fields:
                within += fields.values()
            case bool():
                pass
            case int() | float() as number:
                yield number
