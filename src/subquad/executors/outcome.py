"""The outcome of a run, success or failure, and the record that it makes."""

import json
import time
import traceback
from collections.abc import Mapping
from typing import Any

from subquad.executors.events import Tell
from subquad.executors.executor import Spec
from subquad.plugins import registered
from subquad.records import Record, Store

LOG_CHARACTERS = 4000  # kept of what a failed run printed last
REASON_CHARACTERS = 300  # of one that other code gave
STARVED = ("can't allocate memory", "size calculation overflowed", "Overflow when unpacking")  # torch's own
NOTHING: Mapping[str, Any] = {"result": {}, "measured": {}, "data": {}}


def run_here(spec: Spec, store: Store, tell: Tell) -> Record:
    """Run a spec in this process, whatever comes of it."""
    start = time.monotonic()
    facts = {**surroundings(spec), **outcome(spec, store, tell)}
    return make_record(spec, facts, seconds=time.monotonic() - start)


def surroundings(spec: Spec) -> dict[str, Any]:
    """The machine and the versions of packages, for a run that is about to begin with its threads.

    Among the packages are those whose plug-ins a run may load.
    """
    import torch

    from subquad.measure.machine import PACKAGES, machine, versions

    torch.set_num_threads(spec.threads)
    plugged = dict.fromkeys(plugin["package"] for plugin in registered())
    return {"machine": machine(), "versions": versions([*PACKAGES, *plugged])}


def outcome(spec: Spec, store: Store, tell: Tell) -> dict[str, Any]:
    """Status, reason and result, as JSON; with the traceback as "log" where there is one."""
    try:
        ended = {"status": "ok", "reason": "", **spec.run(store, tell)}
        return json.loads(json.dumps(ended, allow_nan=False))
    except Exception as error:  # the one place that catches everything, and writes down what it caught
        return {**failure(error), "log": traceback.format_exc()[-LOG_CHARACTERS:]}


def failure(error: Exception) -> dict[str, str]:
    """Status and reason of a run that raised."""
    import torch

    text = first_line(error)
    if isinstance(error, FloatingPointError):
        return {"status": "not finite", "reason": text}
    starved = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(say in text for say in STARVED)
    return {"status": "out of memory" if starved else "failed", "reason": text}


def first_line(error: BaseException) -> str:
    """What an exception says, or its name, as `shown` has it."""
    lines = str(error).strip().splitlines()
    return shown(lines[0] if lines else type(error).__name__)


def shown(line: str) -> str:
    """What other code wrote, as a terminal can have it: not without end, and without control characters."""
    cut = line if len(line) <= REASON_CHARACTERS else f"{line[:REASON_CHARACTERS]}…"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in cut
    )


def make_record(spec: Spec, facts: Mapping[str, Any], *, seconds: float) -> Record:
    """The record of what is known of a run; of a failure where that is no result."""
    identity = {"key": spec.key, "kind": spec.kind, "version": spec.version, "spec": spec.to_json()}
    record: Record = {"machine": {}, "versions": {}, **NOTHING, **facts, **identity, "seconds": seconds}
    try:
        spec.check(record)
    except ValueError as error:
        record |= {"status": "failed", "reason": f"its outcome is no result: {first_line(error)}", **NOTHING}
    return record
