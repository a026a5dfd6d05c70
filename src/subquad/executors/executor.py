"""The contract of an executor: a spec in, a record out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from subquad.executors.events import Tell
from subquad.records import Record, Store


@runtime_checkable
class Spec(Protocol):
    """What is to be run: JSON through and through, so that another process or machine can make it again.

    kind, version: of its record.
    timed: whether the result is how long something takes.
    key: the name of its record.
    threads: of the process that runs it.
    """

    kind: ClassVar[str]
    version: ClassVar[int]
    timed: ClassVar[bool]

    @property
    def key(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, document: Mapping[str, Any], /) -> "Spec": ...

    def run(self, store: Store, tell: Tell) -> Mapping[str, Any]:
        """Run in this process, and return the "result", "measured" and "data" of the record, as JSON."""
        ...

    def check(self, record: Record) -> None:
        """Raise `ValueError`, naming the field, for what is no record of such a spec."""


class Executor(ABC):
    """Runs specs, several at a time, and outlives whatever they do.

    slots: runs at a time; `run` is called from as many threads.
    timeout: seconds that one run may take.
    """

    name: ClassVar[str]  # what users type to choose it
    elsewhere: ClassVar[bool] = False  # whether runs compute on other machines, with devices of their own
    package: ClassVar[str] = ""  # what has to be installed for it, if anything

    def __init__(self, *, slots: int, timeout: float) -> None:
        self.slots, self.timeout = slots, timeout

    def bring(self, folders: Sequence[Path]) -> None:  # noqa: B027  # most have nothing to do
        """Take note of folders of prepared data that runs may read, for machines that do not see them."""

    @abstractmethod
    def run(self, spec: Spec, store: Store, tell: Tell) -> Record:
        """Run it, and return its record, which the caller writes; never an exception for the run's sake.

        `store` has the run's checkpoints and model. `tell` takes its progress and notes, from any thread.
        """

    @abstractmethod
    def stop(self) -> None:
        """End the runs under way, and begin none: nobody asks for their records. Checkpoints stay."""
