"""Many runs and as many records: what is missing of them is run.

What is recorded as done is not done again; what failed is tried again, and so is what a damaged record was
of. Several commands may share a folder: a run is claimed before it starts, and whoever finds it claimed waits
for the other's record.
"""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from subquad.documents import Damaged
from subquad.executors import Event, Executor, Progress
from subquad.executors.outcome import make_record, shown
from subquad.experiments.spec import AnySpec
from subquad.records import Record, Store

CLAIM_POLL_S = 0.5  # seconds between two looks at a run that another process has claimed
SIGNAL_POLL_S = 0.2  # seconds until Ctrl-C is heeded where a signal does not end a wait
RESUMABLE = {"timeout", "out of memory"}  # statuses of runs that may go on from their checkpoints


class Observer:
    """Is told how the runs are going, from several threads. This one keeps it to itself."""

    def on_skipped(self, spec: AnySpec) -> None:
        """Done before this command, or meanwhile by another one."""

    def on_waiting(self, spec: AnySpec) -> None:
        """Being run by another process."""

    def on_started(self, spec: AnySpec) -> None:
        """Handed to the executor."""

    def on_progress(self, spec: AnySpec, progress: Progress) -> None:
        """Under way."""

    def on_note(self, spec: AnySpec, text: str) -> None:
        """Something happened that people should know, such as a damaged file."""

    def on_finished(self, spec: AnySpec, record: Record) -> None:
        """And recorded."""


def run_missing(
    specs: Sequence[AnySpec], store: Store, *, executor: Executor, observer: Observer
) -> list[Record]:
    """Run what is missing of the specs, and return the records of all, in their order."""
    grid = Grid(specs, store, executor, observer)
    with ThreadPoolExecutor(executor.slots) as pool:
        try:
            futures = [pool.submit(grid.run_or_wait, spec) for spec in grid.missing]
            while True:
                done, others = wait(futures, timeout=SIGNAL_POLL_S, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if not others:
                    break
        except BaseException:  # Ctrl-C, or a full disk: nothing goes on behind its back
            grid.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return store.read(spec.key for spec in specs)


class Grid:
    """A set of runs under way."""

    def __init__(
        self, specs: Sequence[AnySpec], store: Store, executor: Executor, observer: Observer
    ) -> None:
        self.store, self.executor, self.observer = store, executor, observer
        self.before = {spec.key: self.recorded(spec) for spec in specs}
        self.missing = [spec for spec in specs if not succeeded(self.before[spec.key])]
        self.stopped = False
        left = store.checkpoints()
        for spec in specs:
            if spec not in self.missing:
                if spec.key in left:  # a process was killed behind the record
                    store.forget_checkpoint(spec.key)
                observer.on_skipped(spec)

    def run_or_wait(self, spec: AnySpec) -> None:
        """Run it, or wait until another process has."""
        waiting = False
        while not self.stopped:
            with self.store.claim(spec.key) as claimed:
                if claimed:
                    latest = self.recorded(spec, claimed=True)
                    if succeeded(latest) or latest != self.before[spec.key]:
                        return self.observer.on_skipped(spec)
                    return self.run(spec)
            if not waiting:
                self.observer.on_waiting(spec)
                waiting = True
            time.sleep(CLAIM_POLL_S)

    def recorded(self, spec: AnySpec, *, claimed: bool = False) -> Record | None:
        """The record of a run; None where there is none, or a damaged one.

        Whoever has claimed the run sets a damaged record aside. Others may be looking at its successor.
        """
        try:
            return self.store.get(spec.key)
        except Damaged as damage:
            if claimed:
                damaged = self.store.set_aside(spec.key)
                self.observer.on_note(
                    spec, f"{damage}; the run is done again, and the file is kept as {damaged.name}"
                )
            return None

    def run(self, spec: AnySpec) -> None:
        def tell(event: Event) -> None:
            if event["event"] == "progress":
                self.observer.on_progress(spec, event)
            else:
                self.observer.on_note(spec, event["text"])

        self.observer.on_started(spec)
        record = confirmed(spec, self.executor.run(spec, self.store, tell)) | {"workers": self.executor.slots}
        if self.stopped:
            return
        self.store.put(record)
        if record["status"] not in RESUMABLE:
            self.store.forget_checkpoint(spec.key)
        self.observer.on_finished(spec, record)

    def stop(self) -> None:
        """End all runs without a record of them; their checkpoints stay."""
        self.stopped = True
        self.executor.stop()


def confirmed(spec: AnySpec, record: Record) -> Record:
    """What an executor gave, if it is the record of this run, and otherwise that of a failure."""
    try:
        spec.check(record)
        if record["key"] == spec.key:
            return record
        reason = f"it is that of {record['key']!r}"
    except ValueError as error:
        reason = str(error)
    facts = {"status": "failed", "reason": f"the executor gave no record of this run: {shown(reason)}"}
    return make_record(spec, facts, seconds=0.0)


def succeeded(record: Record | None) -> bool:
    return record is not None and record["status"] == "ok"
