"""A task of a Ray cluster a run: on this machine alone, or on all that have joined.

Each run takes the CPUs of its threads, a GPU where it computes on one, and the memory that is asked for. What
is timed has a node to itself, and all that is timed goes to nodes of one kind.

A run whose worker or node dies goes on elsewhere from its last checkpoint; one to which that happens time
after time without a new step in between has failed.
"""

import secrets
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subquad.documents import Damaged
from subquad.executors import cluster
from subquad.executors.cluster import Node
from subquad.executors.events import Tell
from subquad.executors.executor import Executor, Spec
from subquad.executors.local import module_folders, type_name
from subquad.executors.node import Work, failed, pack, run_on_node
from subquad.executors.outcome import first_line
from subquad.files import write_whole
from subquad.records import Record, Store

LOSSES = 3  # of a run's worker in a row, without a new step in between, after which the run has failed
GB = 10**9  # bytes
TIMED = ("bench", "stream")  # kinds of records whose result is how long something takes


class Lost(Exception):
    """The worker or the node of a run died; the message says which.

    starved: whether Ray ended the run since memory ran out.
    """

    def __init__(self, reason: str, *, starved: bool = False) -> None:
        super().__init__(reason)
        self.starved = starved


@dataclass
class Course:
    """How often a run was begun and lost, and how far it came.

    losses: in a row, without a new step in between.
    """

    node: str = "a node"
    attempts: int = 0
    losses: int = 0
    furthest: int = 0

    def reach(self, step: int) -> None:
        if step > self.furthest:
            self.furthest, self.losses = step, 0


class Ray(Executor):
    """Runs each spec in a process of its own on a node of a cluster.

    slots: runs at a time on each node.
    timeout: seconds after which a run's process is killed.
    address: of a cluster, HOST:PORT or "auto". "": what RAY_ADDRESS says, or a cluster of this machine alone.
    nodes: that the cluster may come to have. 0: those that it has now.
    memory_gb: 10 ** 9 bytes that are set aside for each run. 0: none are.

    Raises `ValueError`, which names the remedy, where the cluster cannot be joined or has other software.
    """

    name = "ray"
    elsewhere = True
    package = "ray"

    def __init__(
        self, *, slots: int = 1, timeout: float, address: str = "", nodes: int = 0, memory_gb: float = 0.0
    ) -> None:
        if nodes < 0 or memory_gb < 0:
            raise ValueError(f"nodes and memory_gb of 'ray' are at least 0, not {nodes} and {memory_gb:g}")
        cluster.connect(address)
        found = cluster.nodes()
        if not found and not nodes:
            raise ValueError(
                "the Ray cluster has no node with CPUs for runs: start some, or say how many will come, "
                "as in 'ray:nodes=4'"
            )
        self.names = cluster.names(found)
        theirs = cluster.answers(cluster.software_where, found, module_folders())
        named = {self.names[node]: software for node, software in theirs.items()}
        if refusal := cluster.unlike(cluster.software(), named):
            raise ValueError(refusal)
        super().__init__(slots=slots * max(nodes, len(found)), timeout=timeout)
        self.nodes, self.memory = nodes, memory_gb * GB
        self.mark = f".claims/seen-{secrets.token_hex(8)}"
        self.cache, self.prepared = "", {}  # the folder of prepared data, and its entries by name
        self.kinds: dict[str, str] = {}  # of nodes, by id
        self.timed_kind = ""  # of the nodes to which what is timed goes
        self.under_way: set[Any] = set()  # the generators of events
        self.lock = threading.Lock()
        self.stopped = False

    def bring(self, folders: Sequence[Path]) -> None:
        import ray

        for folder in folders:
            self.cache = str(folder.absolute().parent)
            self.prepared[folder.name] = ray.put(pack(folder))

    def run(self, spec: Spec, store: Store, tell: Tell) -> Record:
        work = Work(
            type=type_name(spec),
            spec=spec.to_json(),
            path=module_folders(),
            folder="" if store.remote else str(store.folder.absolute()),
            mark="" if store.remote else self.marked(store.folder),
            address=store.remote.address if store.remote else "",
            timeout=self.timeout,
            software=cluster.software(),
            cache=self.cache,
            prepared={} if spec.timed else self.prepared,
        )
        course = Course()
        record = failed(spec, "it was stopped")
        while not self.stopped:
            options = self.timing_options(store, tell) if spec.timed else self.options(spec, course)
            if options is None:
                record = failed(spec, "there is no node of the kind on which the others were timed")
                break
            try:
                record = self.attempt(work, options, course, tell)
                break
            except Lost as lost:
                if self.stopped:
                    break
                course.losses += 1
                if course.losses == LOSSES:
                    reason = f"{lost}, {LOSSES} times in a row without a new step in between"
                    record = failed(spec, reason, status="out of memory" if lost.starved else "failed")
                    break
                tell({"event": "note", "text": f"{lost}: it goes on from its last checkpoint"})
        return {**record, "node": course.node, "attempts": course.attempts}

    def marked(self, folder: Path) -> str:
        """The name of a file within a folder by which a node can tell whether it sees the same one."""
        with self.lock:
            if not (path := folder / self.mark).exists():
                write_whole(path, b"")
                weakref.finalize(self, path.unlink, missing_ok=True)
        return self.mark

    def attempt(self, work: Work, options: Mapping[str, Any], course: Course, tell: Tell) -> Record:
        """The record of a run that ends by itself. Raises `Lost` for one that does not."""
        import ray

        tell({"event": "progress", "phase": "waiting for a node", "step": 0, "steps": 0, "loss": None})
        course.attempts += 1
        course.node = "a node"
        task = ray.remote(run_on_node).options(num_returns="streaming", max_retries=0, **options)
        for event in self.events(task.remote(work), course):
            match event["event"]:
                case "node":
                    course.node = self.name_of(event["node"])
                case "progress":
                    course.reach(event["step"])
                    tell({**event, "node": course.node})  # pyright: ignore[reportArgumentType]
                case "note":
                    tell(event)  # pyright: ignore[reportArgumentType]
                case "record":
                    return event["record"]
                case "refused":
                    raise ValueError(event["reason"])
        raise Lost(f"{course.node} told no outcome")

    def events(self, generator: Any, course: Course) -> Iterator[dict[str, Any]]:
        """What a task tells. Raises `Lost` where its worker dies, and `ValueError` where it cannot begin."""
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError

        with self.lock:
            self.under_way.add(generator)
            if self.stopped:
                ray.cancel(generator, force=True)
        try:
            for reference in generator:
                yield ray.get(reference)
        except RayTaskError as error:
            raise ValueError(f"{course.node} cannot run subquad: {first_line(error.cause)}") from None
        except RayError as error:
            if isinstance(error, OutOfMemoryError):
                raise Lost(f"memory ran out on {course.node}", starved=True) from None
            what = "died" if isinstance(error, NodeDiedError) else f"lost its worker ({type(error).__name__})"
            raise Lost(f"{course.node} {what}") from None
        finally:
            with self.lock:
                self.under_way.discard(generator)

    def options(self, spec: Spec, course: Course) -> dict[str, Any]:
        """What a run takes of a node. Raises `ValueError` where no node could ever take it."""
        needs = Node("", "", float(spec.threads), float(uses_gpu(spec)), self.memory)
        found = cluster.nodes()
        roomy = any(has_room(node, needs) for node in found)
        if not roomy and not course.attempts and len(found) >= self.nodes:
            raise ValueError(
                f"no node of the Ray cluster has what a run takes, {needs.cpus:g} CPUs, {needs.gpus:g} GPUs "
                f"and {self.memory / GB:g} GB: OMP_NUM_THREADS is the CPUs, and each of --workers has a part"
            )
        return {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus,
            "memory": self.memory or None,
            "scheduling_strategy": "SPREAD",
        }

    def timing_options(self, store: Store, tell: Tell) -> dict[str, Any] | None:
        """What a timed run takes: a whole node, of the kind that has them all; None where none is left."""
        with self.lock:
            found = cluster.nodes()
            unknown = [node for node in found if node.id not in self.kinds]
            self.kinds |= cluster.answers(cluster.kind, unknown)
            known = Counter(self.kinds[node.id] for node in found if node.id in self.kinds)
            if not self.timed_kind and known:
                made = kinds_timed(store)
                self.timed_kind = max(known, key=lambda kind: (made[kind], known[kind], kind))
                if made and not made[self.timed_kind]:
                    text = "timings of this folder were made on a kind of machine that is no longer here"
                    tell({"event": "note", "text": f"{text}: figures of two kinds give no ratio"})
            alike = [node for node in found if self.kinds.get(node.id) == self.timed_kind]
        if not alike:
            return None
        cpus = max(node.cpus for node in alike)
        whole = [node for node in alike if node.cpus == cpus]
        gpus = min(node.gpus for node in whole)
        return {"num_cpus": cpus, "num_gpus": gpus, **cluster.only_on(whole)}

    def name_of(self, node: str) -> str:
        """What people call a node; it may have joined meanwhile."""
        if node not in self.names:
            self.names = {**cluster.names(cluster.nodes()), **self.names}
        return self.names.get(node, node[:6])

    def stop(self) -> None:
        import ray

        with self.lock:
            self.stopped = True
            for generator in self.under_way:
                ray.cancel(generator, force=True)


def has_room(node: Node, needs: Node) -> bool:
    return node.cpus >= needs.cpus and node.gpus >= needs.gpus and node.memory >= needs.memory


def uses_gpu(spec: Spec) -> bool:
    """Whether a run computes on one, as the specs of experiments say it."""
    return spec.to_json().get("place", {}).get("device") == "cuda"


def kinds_timed(store: Store) -> Counter[str]:
    """Of the machines on which a folder's timings were made, how many on each."""
    made: Counter[str] = Counter()
    for key in store.recorded():
        try:
            record = store.get(key)
        except Damaged:
            continue
        if record and record["status"] == "ok" and record["kind"] in TIMED:
            made[cluster.kind_of(record["machine"])] += 1
    return made
