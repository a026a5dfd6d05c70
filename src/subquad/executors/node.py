"""What a node of a cluster does for one run: it hands it to a process of its own and passes on what it hears.

The run is a child process here as it is on a single machine, so that a crash, a hang or a lack of memory
costs a record and no worker. A worker that dies takes its child along.
"""

import os
import socket
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from subquad.executors.cluster import software_where, unlike
from subquad.executors.executor import Spec
from subquad.executors.local import Local, find_class
from subquad.executors.outcome import first_line, make_record
from subquad.records import Store
from subquad.remote import Remote

SHARE_S = 1.0  # seconds between two looks for a new checkpoint
PROGRESS_S = 1.0  # seconds between two reports of progress: thousands of runs tell one process

EventFields = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A run for a node.

    type: "module:class" of the spec, and `path` the folders where modules may lie.
    folder: of the records, which has a file `mark`; "" where they go to an address.
    address: of the records; "": none.
    software: of the process that asks for it.
    cache: its folder of prepared data; prepared: those entries that the run may read, packed.
    """

    type: str
    spec: Mapping[str, Any]
    path: Sequence[str]
    folder: str
    mark: str
    address: str
    timeout: float
    software: Mapping[str, str]
    cache: str
    prepared: Mapping[str, Any]


def run_on_node(work: Work) -> Iterator[EventFields]:
    """The events of a run; a task of Ray.

    The first says which node it is. The last has the record, or says why no run can be here:
    {"event": "refused", "reason": …}.
    """
    import ray

    yield {"event": "node", "node": ray.get_runtime_context().get_node_id()}
    if refusal := refused_here(work):
        yield {"event": "refused", "reason": refusal}
        return
    if work.prepared:
        os.environ["SUBQUAD_CACHE"] = prepared_folder(work)
        os.environ["SUBQUAD_PREPARED"] = " ".join(work.prepared)
    spec, executor = find_class(work.type).from_json(work.spec), Local(timeout=work.timeout)
    told: SimpleQueue[EventFields] = SimpleQueue()

    def run() -> None:
        try:
            with store_for(work, spec.key) as store:
                record = executor.run(spec, store, told.put)  # pyright: ignore[reportArgumentType]
        except Exception as error:  # such as a machine that can start no more processes
            record = failed(spec, first_line(error))
        told.put({"event": "record", "record": record})

    threading.Thread(target=run, daemon=True).start()
    try:
        yield from latest(told)
    finally:
        executor.stop()


def failed(spec: Spec, reason: str, *, status: str = "failed") -> dict[str, Any]:
    """The record of a run that came to no outcome of its own."""
    return make_record(spec, {"status": status, "reason": reason}, seconds=0.0)


def refused_here(work: Work) -> str | None:
    """Why this node can do no run; None where it can."""
    host = socket.gethostname()
    if refusal := unlike(work.software, {host: software_where(work.path)}):
        return refusal
    if work.address or (Path(work.folder) / work.mark).exists():
        return None
    return (
        f"{host!r} does not see the folder {work.folder!r}: take one that all nodes share, or an address "
        "such as s3://BUCKET/FOLDER"
    )


@contextmanager
def store_for(work: Work, key: str) -> Iterator[Store]:
    """The folder of a run: the one that all share, or one of this node.

    The latter begins with the run's checkpoint at the address, and what comes into it goes there: checkpoints
    as they are written, and the model at the end.
    """
    if not work.address:
        yield Store(Path(work.folder))
        return
    with tempfile.TemporaryDirectory(prefix="subquad-") as folder:
        store = Store(Path(folder), Remote(work.address))
        checkpoint = store.checkpoint_path(key)
        store.fetch(checkpoint)
        ended = threading.Event()
        sharing = threading.Thread(
            target=share_versions, args=(store, checkpoint, written_at(checkpoint), ended)
        )
        sharing.start()
        try:
            yield store
        finally:
            ended.set()
            sharing.join()
        store.share(store.model_path(key))


def share_versions(store: Store, path: Path, shared: int | None, ended: threading.Event) -> None:
    """Share each version of a file until a run has ended, and then its last one.

    shared: when the version that need not be was written.
    """
    while True:
        last = ended.wait(SHARE_S)
        if (latest := written_at(path)) not in {shared, None}:
            with suppress(
                OSError
            ):  # the next look tries again: an older checkpoint costs time, and no result
                store.share(path)
                shared = latest
        if last:
            return


def written_at(path: Path) -> int | None:
    """Nanoseconds; None where there is no file."""
    return path.stat().st_mtime_ns if path.exists() else None


def latest(told: "SimpleQueue[EventFields]") -> Iterator[EventFields]:
    """Events until the record; of progress, the latest of each `PROGRESS_S`."""
    waiting: EventFields | None = None
    due = 0.0
    while True:
        try:
            event = told.get(timeout=max(0.0, due - time.monotonic()) if waiting else None)
        except Empty:
            event = None
        if event and event["event"] == "progress":
            waiting = event
        if waiting and (event is not waiting or time.monotonic() >= due):
            yield waiting
            waiting, due = None, time.monotonic() + PROGRESS_S
        if event and event["event"] != "progress":
            yield event
            if event["event"] == "record":
                return


def prepared_folder(work: Work) -> str:
    """Where the prepared data are on this node: where they are on the other machine, or unpacked here."""
    if all((Path(work.cache) / name).is_dir() for name in work.prepared):
        return work.cache
    import ray

    folder = Path(tempfile.gettempdir()) / f"subquad-{os.getuid()}" / "prepared"
    for name, packed in work.prepared.items():
        unpack(ray.get(packed), folder / name)
    return str(folder)


def pack(folder: Path) -> bytes:
    """A folder's files."""
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return packed.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Make a folder of what `pack` gave, whole or not at all; nothing where it is there."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as draft:
        with tarfile.open(fileobj=BytesIO(packed)) as archive:
            archive.extractall(Path(draft) / "whole", filter="data")
        try:
            (Path(draft) / "whole").rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster
                raise
