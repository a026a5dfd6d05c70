"""The Ray cluster of a comparison: joined or started, and its nodes held against this process.

A cluster that is started here is of this machine alone: it listens on the loopback interface, asks for its
token, and ends with this process. One that is joined is as whoever started it made it.
"""

import hashlib
import json
import os
import platform
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from subquad.executors.outcome import first_line
from subquad.measure.machine import versions

LOCAL = {  # the variables of a cluster that is started here, where they are not set
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux, too, this makes Ray listen on the loopback alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # by Ray's 15, runs would wait for whatever else this machine does
}
NO_LOGS: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
SKIPPED = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}  # Ray prints what befell a node all the same, in many lines
ANSWER_S = 10.0  # seconds in which an address has to take a connection
PROBE_S = 120.0  # seconds in which a node has to say what it is
NODE_ID = "ray.io/node-id"  # the label that Ray gives to each node
REGISTERED = ("mechanisms", "tasks", "executors")  # what other packages register
SHOWN_NODES = 3  # of those that differ


class Node(NamedTuple):
    """A node that takes runs.

    memory: bytes that Ray shares out.
    """

    id: str
    host: str
    cpus: float
    gpus: float
    memory: float


def connect(address: str) -> None:
    """Join the cluster at an address, or at RAY_ADDRESS, or start one of this machine.

    A process that is connected stays so. Raises `ValueError` where there is no such cluster.
    """
    address = address or os.environ.get("RAY_ADDRESS", "")
    for name, value in (SKIPPED if address else {**SKIPPED, **LOCAL}).items():
        os.environ.setdefault(name, value)  # before Ray is imported
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return
    require_answer(address)
    place = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**place, **NO_LOGS)
    except (RuntimeError, OSError, ValueError, RayError) as error:
        where = (
            f"the Ray cluster at {address!r} cannot be joined" if address else "no Ray cluster starts here"
        )
        raise ValueError(f"{where}: {first_line(error)}") from None


def require_answer(address: str) -> None:
    """Raise `ValueError` for an address that nothing listens on: Ray would wait for it for minutes."""
    if "://" in address:
        raise ValueError(
            f"{address!r} is that of a Ray client: start the command on a machine of the cluster, as "
            "`ray job submit` does, and give HOST:PORT or auto"
        )
    host, colon, port = address.rpartition(":")
    if not colon:  # none, or "auto"
        return
    if not port.isdecimal():
        raise ValueError(f"{address!r} is no address of a Ray cluster: it is written HOST:PORT, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({error}): `ray start --head` prints the address of one"
        ) from None


def nodes() -> list[Node]:
    """The nodes that are alive and take runs; the head of a cluster may have no CPUs for them."""
    import ray

    found = []
    for each in ray.nodes():
        resources = each["Resources"]
        if each["Alive"] and resources.get("CPU", 0.0) > 0:
            found.append(
                Node(
                    each["NodeID"],
                    each["NodeManagerHostname"],
                    resources["CPU"],
                    resources.get("GPU", 0.0),
                    resources.get("memory", 0.0),
                )
            )
    return sorted(found)


def names(found: Iterable[Node]) -> dict[str, str]:
    """What people call the nodes, by id: their hosts, with some of the id where several have one host."""
    found = list(found)
    hosts = Counter(node.host for node in found)
    return {node.id: node.host if hosts[node.host] == 1 else f"{node.host}/{node.id[:6]}" for node in found}


def only_on(found: Iterable[Node]) -> dict[str, Any]:
    """The options of a task for these nodes alone."""
    return {"label_selector": {NODE_ID: f"in({','.join(node.id for node in found)})"}}


def answers(question: Any, found: Iterable[Node], *inputs: Any) -> dict[str, Any]:
    """What a function returns on each of the nodes, by their ids; those that have died meanwhile say nothing.

    Raises `ValueError` where one cannot call it.
    """
    import ray
    from ray.exceptions import GetTimeoutError, NodeDiedError, RayError, TaskUnschedulableError

    ask = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = {node: ask.options(**only_on([node])).remote(*inputs) for node in found}
    said = {}
    for node, answer in asked.items():
        try:
            said[node.id] = ray.get(answer, timeout=PROBE_S)
        except (NodeDiedError, GetTimeoutError, TaskUnschedulableError):
            continue
        except RayError as error:
            if node not in nodes():
                continue
            raise ValueError(
                f"{node.host!r} cannot run subquad ({first_line(error)}): install there what is installed "
                "here, or give the job a runtime environment"
            ) from None
    return said


def software_where(folders: Sequence[str]) -> dict[str, str]:
    """The `software` of a process that finds modules in these folders besides its own."""
    sys.path += [folder for folder in folders if folder not in sys.path]
    return software()


def software() -> dict[str, str]:
    """What runs depend on, by its name: Python, packages with their versions, and the code of this one."""
    plugins = {
        entry.dist.name: entry.dist.version
        for part in REGISTERED
        for entry in entry_points(group=f"subquad.{part}")
        if entry.dist
    }
    installed = {name: version.partition("+")[0] for name, version in {**versions(), **plugins}.items()}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, **installed, "the code of subquad": code()}


@cache
def code() -> str:
    """Stands for all modules of this package."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:12]


def unlike(own: Mapping[str, str], theirs: Mapping[str, Mapping[str, str]]) -> str | None:
    """Why runs would be of other software than one's own, by what nodes are called; None: they are not."""
    found = {node: differences(own, each) for node, each in theirs.items()}
    shown = [f"{node!r} has {', '.join(each)}" for node, each in found.items() if each]
    if not shown:
        return None
    more = f"; and {len(shown) - SHOWN_NODES} more nodes differ" if len(shown) > SHOWN_NODES else ""
    return (
        f"results would be of different software: {'; '.join(shown[:SHOWN_NODES])}{more}. Install there what "
        "is installed here, or start the command as a job with a runtime environment "
        "(`ray job submit --runtime-env-json`)"
    )


def differences(own: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {theirs.get(name, 'not at all')} and not {own.get(name, 'none')}"
        for name in sorted(own.keys() | theirs.keys())
        if own.get(name) != theirs.get(name)
    ]


def kind() -> str:
    """Of the machine that this process runs on; see `kind_of`."""
    from subquad.measure.machine import machine

    return kind_of(machine())


def kind_of(machine: Mapping[str, Any]) -> str:
    """Stands for what machines have in common whose timings may be compared, by a record's machine."""
    facts = {name: value for name, value in machine.items() if name not in {"threads", "fingerprint"}}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
