"""A whole comparison on three nodes that is disturbed, and one that is not: `python -m benchmarks.cluster`.

Options behind `--` are those of `subquad compare`, by default three seeds of its default comparison. It runs
on this machine first. Then it runs on a Ray cluster of a head and three nodes of a CPU each, which are
processes of this machine: after a quarter of its runs it is stopped by Ctrl-C and started again, and half-way
a node is killed. At last the records and weights of both are compared. Ends with status 1 where they differ.
"""

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from subquad.executors.cluster import LOCAL
from subquad.records import Record, Store, run_keys

COMPARED = ("--seeds", "3")
KINDS = {"fit": "fits", "baseline": "baselines", "bench": "measurements of time and memory"}
POLL_S = 0.2
SAID = 4000  # characters of a command that failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of the node that is killed")
    parser.add_argument("--out", help="an address for the records of the cluster (default: a folder)")
    parser.add_argument("options", nargs="*", help="of subquad compare, behind --")
    asked = parser.parse_args(arguments)
    # each run has a thread here as there: of another number of threads sums differ
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("RAY_worker_niceness", LOCAL["RAY_worker_niceness"])
    options = asked.options or COMPARED
    with tempfile.TemporaryDirectory(prefix="subquad-") as folder:
        log, place = Path(folder, "log"), str(Path(folder, "local"))
        workers = str(os.cpu_count() or 1)
        print(f"subquad compare {shlex.join(options)}", flush=True)
        seconds = finished(begun([*options, "--out", place, "--workers", workers], log), log)
        here = Store.at(place)
        runs = here.runs(here.get_comparison())
        print(f"on this machine, {workers} at a time: {len(runs)} runs in {seconds:.0f} s", flush=True)
        place = asked.out or str(Path(folder, "cluster"))
        disturbed([*options, "--out", place], log, Store.at(place), len(runs), random.Random(asked.seed))
        return compared(here, Store.at(place))


def begun(options: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """`subquad compare`, as a terminal starts it: in a group of its own."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "subquad", "compare", *options],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def finished(command: subprocess.Popen[bytes], log: Path) -> float:
    """Seconds until it has ended. Raises `RuntimeError` with what it said where that is not well."""
    start = time.monotonic()
    if status := command.wait():
        raise RuntimeError(f"ended with {status}\n{log.read_text()[-SAID:]}")
    return time.monotonic() - start


def disturbed(options: Sequence[str], log: Path, store: Store, runs: int, draw: random.Random) -> None:
    """The comparison on a cluster that loses a node, with a Ctrl-C before."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    members = [nodes.add_node(num_cpus=1) for _ in range(3)]
    options = [*options, "--executor", "ray", "--address", str(nodes.address)]
    start = time.monotonic()
    command = begun(options, log)
    until(store, runs // 4, command)
    os.killpg(command.pid, signal.SIGINT)
    pressed = time.monotonic()
    status = command.wait()
    print(f"Ctrl-C: ended with {status} after {time.monotonic() - pressed:.1f} s", flush=True)
    command = begun(options, log)
    until(store, runs // 2, command)
    nodes.remove_node(draw.choice(members), allow_graceful=False)
    print(f"after {runs // 2} of {runs} runs a node of three was killed", flush=True)
    finished(command, log)
    print(f"on the cluster: {time.monotonic() - start:.0f} s, both starts", flush=True)
    nodes.shutdown()


def until(store: Store, number: int, command: subprocess.Popen[bytes]) -> None:
    """Wait until so many records are there. Raises `RuntimeError` where the command ends before."""
    while len(store.recorded()) < number:
        if command.poll() is not None:
            raise RuntimeError(f"it ended with {command.returncode} before {number} runs were done")
        time.sleep(POLL_S)


def compared(here: Store, there: Store) -> int:
    """Print a row for each kind of runs; 1 where anything is missing or differs."""
    expected, got = here.get_comparison(), there.get_comparison()
    others = {record["key"]: record for record in there.runs(got)}
    wrong = run_keys(expected) != run_keys(got)
    print("\n| runs | done | with the same result | and weights | that lost a node |\n|---|--:|--:|--:|--:|")
    for kind, name in KINDS.items():
        records = [record for record in here.runs(expected) if record["kind"] == kind]
        pairs = [(record, others[record["key"]]) for record in records if record["key"] in others]
        done = sum(one["status"] == other["status"] == "ok" for one, other in pairs)
        same = sum(one["result"] == other["result"] for one, other in pairs)
        weights = sum(weights_of(here, one) == weights_of(there, other) for one, other in pairs)
        moved = sum(other.get("attempts", 1) > 1 for _, other in pairs)
        told = ("", "") if kind == "bench" else (same, weights if kind == "fit" else "")
        print("|", " | ".join(map(str, (name, f"{done} of {len(records)}", *told, moved))), "|")
        wrong |= done < len(records) or (kind != "bench" and min(same, weights) < len(records))
    return int(wrong)


def weights_of(store: Store, record: Record) -> bytes | None:
    path = store.model_path(record["key"])
    store.fetch(path)
    weights = path / "model.safetensors"
    return weights.read_bytes() if weights.exists() else None


if __name__ == "__main__":
    sys.exit(main())
