"""What a run costs on a Ray cluster besides itself: `python -m benchmarks.scaling`.

The cluster is of processes of this machine, a head and so many nodes of a CPU each. Runs wait, so that nodes
do not share this machine's cores and what is left is the executor's: seconds a run, and of the process that
hands them out, CPU seconds a run and a report of progress. Of these follows what more nodes would do, where
nothing but the driver is shared: data stores and networks are not measured.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from subquad.executors import Executor, Local, Ray, Tell
from subquad.executors.cluster import LOCAL
from subquad.executors.node import PROGRESS_S
from subquad.records import Record, Store

NODES = (1, 2, 4)  # that are measured
COMPUTED = (1, 10, 100, 1000)
RUNS = 8  # that are handed out while nodes are counted
WAIT_S = 20.0  # that each of them waits
REPORTS = 2000  # of a run that does nothing else
LENGTHS_S = (60.0, 600.0)  # of the runs whose time is computed
TOTAL = 10_000  # runs whose time is computed


@dataclass(frozen=True)
class Wait:
    """Reports so often, and waits."""

    kind: ClassVar = "wait"
    version: ClassVar = 1
    timed: ClassVar = False
    key: str
    seconds: float = 0.0
    reports: int = 0
    threads: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], /) -> "Wait":
        return cls(**document)

    def run(self, store: Store, tell: Tell) -> dict[str, Any]:
        for report in range(self.reports):
            tell({"event": "note", "text": f"report {report}"})
        time.sleep(self.seconds)
        return {}

    def check(self, record: Record) -> None:
        pass


class Costs(NamedTuple):
    """Seconds: of a run on this machine that does nothing, and of a node's; of the driver's CPU.

    driver_run: a run; driver_report: a report of progress.
    """

    local: float
    node: float
    driver_run: float
    driver_report: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument(
        "--wait", type=float, default=WAIT_S, help="seconds that a run waits (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="of a row (default: %(default)s)")
    options = parser.parse_args(arguments)
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_worker_niceness", LOCAL["RAY_worker_niceness"])
    print(f"load of this machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    start = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    started = time.monotonic() - start
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        start = time.monotonic()
        ray = Ray(timeout=600.0, address=str(cluster.address))
        joined = time.monotonic() - start
        print(f"a cluster of a head and a node starts in {started:.1f} s and is joined in {joined:.1f} s\n")
        costs = measured(ray, store)
        print("| of a run | seconds |\n|---|--:|")
        print(f"| that does nothing, on this machine | {costs.local:.2f} |")
        print(f"| more on a node | {costs.node - costs.local:.2f} |")
        print(f"| the driver's CPU | {costs.driver_run:.4f} |")
        print(f"| the driver's CPU for a report | {costs.driver_report:.6f} |\n")
        print(f"| nodes | {options.runs} runs that wait {options.wait:g} s | times as fast |\n|--:|--:|--:|")
        first = None
        for nodes in NODES:
            while len(cluster.list_all_nodes()) <= nodes:
                cluster.add_node(num_cpus=1)
            ray = Ray(timeout=600.0, address=str(cluster.address))
            seconds = elapsed(ray, store, [Wait(str(n), options.wait) for n in range(options.runs)])
            first = first or seconds
            print(f"| {nodes} | {seconds:.1f} s | {first / seconds:.2f} |", flush=True)
    print()
    print_computed(costs)


def measured(ray: Executor, store: Store) -> Costs:
    local = Local(timeout=600.0)
    for executor in (local, ray):
        executor.run(Wait("first"), store, quiet)  # files are read, and a worker is there
    local_s, node_s = (elapsed(executor, store, [Wait("nothing")] * 3) / 3 for executor in (local, ray))
    before = time.process_time()
    elapsed(ray, store, [Wait("nothing")] * 3)
    driver_run = (time.process_time() - before) / 3
    before = time.process_time()
    elapsed(ray, store, [Wait("reports", reports=REPORTS)])
    return Costs(local_s, node_s, driver_run, (time.process_time() - before - driver_run) / REPORTS)


def elapsed(executor: Executor, store: Store, specs: Sequence[Wait]) -> float:
    """Seconds until all have run."""
    start = time.monotonic()
    with ThreadPoolExecutor(executor.slots) as pool:
        records = list(pool.map(lambda spec: executor.run(spec, store, quiet), specs))
    for record in records:
        if record["status"] != "ok":
            raise RuntimeError(record["reason"])
    return time.monotonic() - start


def quiet(event: Any) -> None:
    """Tell nobody."""


def print_computed(costs: Costs) -> None:
    """What follows for more nodes, with a run at a time on each."""
    print(f"| nodes | a run of | {TOTAL:,} runs | times as fast | driver's CPU |\n|--:|--:|--:|--:|--:|")
    more = max(costs.node, costs.local)  # they differ by less than two measurements do
    for length in LENGTHS_S:
        alone = TOTAL * (length + costs.local)
        for nodes in COMPUTED:
            busy = nodes * (costs.driver_report / PROGRESS_S + costs.driver_run / (length + more))
            seconds = math.ceil(TOTAL / nodes) * (length + more) * max(1.0, busy)
            cells = (f"{nodes:,}", f"{length:g} s", f"{seconds / 3600:,.1f} h", f"{alone / seconds:,.0f}")
            print("|", " | ".join((*cells, f"{busy:.1%} of a core")), "|")
        most = 1 / (costs.driver_report / PROGRESS_S + costs.driver_run / (length + more))
        print(f"\na driver keeps up with {most:,.0f} nodes where a run takes {length:g} s\n")


if __name__ == "__main__":
    from benchmarks import scaling  # a node finds `Wait` by this name

    scaling.main()
