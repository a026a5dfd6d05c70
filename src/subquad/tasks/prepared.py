"""Prepared data sets, kept in a folder for other processes and the next time.

    CACHE/<task>-<key>/       a data set: `PartFolder`, and request.json, what it was made of
    CACHE/<task>-<key>.lock   held by the process that makes it

CACHE is what the environment variable SUBQUAD_CACHE names, or the platform's folder for what can be made
again. The key is a hash of the task, its options, its revision and its code, and of what is in the files that
it reads: whatever makes other data has another key. SUBQUAD_PREPARED names data sets in CACHE that another
machine made: they are read without those files.
"""

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad.documents import Damaged, read_json, validated, write_json
from subquad.files import set_aside
from subquad.task import Dataset, Task
from subquad.tasks.errors import DataError
from subquad.tasks.part_folder import PartFolder
from subquad.tasks.preparable import DataPart, Preparable

FORMAT = 1  # of the folder
REQUEST = "request.json"

TellShare = Callable[[float | None], None]  # the share that is made; None: another process is making it


def folder() -> Path:
    """Where prepared data sets are."""
    if chosen := os.environ.get("SUBQUAD_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "subquad" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "subquad"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subquad"


class Request(TypedDict):
    """What data are made of, but for the code."""

    format: int
    task: str
    revision: int
    options: dict[str, Any]
    files: str


@dataclass(frozen=True)
class Entry:
    """A place in the cache."""

    path: Path

    @classmethod
    def of(cls, task: Preparable, options: Mapping[str, Any]) -> "Entry":
        """That of a task with all its options. Raises `DataError` where what it reads is not there."""
        text = json.dumps({**request(task, options), "code": code(type(task))}, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(folder() / f"{task.traits.name}-{key}")

    def read(self) -> DataPart | None:
        """What was prepared; None where it is not, or not to its end. Raises `Damaged`."""
        stored = PartFolder(self.path)
        return stored.read() if stored.done == 1 else None

    def prepare(self, task: Preparable, options: Mapping[str, Any], tell: TellShare) -> DataPart:
        """What was prepared, or is now: from where an earlier process was interrupted.

        What is damaged is set aside with a warning and made anew. Raises `DataError` where the data cannot
        be had, and `OSError` where they cannot be kept.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f"{self.path.name}.lock"), tell):
            try:
                return self.made(task, options, tell)
            except Damaged as damage:
                aside = set_aside(self.path)
                warnings.warn(f"{damage}; it is made anew, and kept as {aside.name}", stacklevel=2)
                return self.made(task, options, tell)

    def made(self, task: Preparable, options: Mapping[str, Any], tell: TellShare) -> DataPart:
        stored = PartFolder(self.path)
        if stored.done < 1:
            write_json(self.path / REQUEST, request(task, options))
            stored.cut()
            tell(stored.done)
            for part in task.parts(stored.parts()):
                stored.append(part)
                tell(stored.done)
        return stored.read()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(path.stat().st_size for path in self.path.iterdir())

    def described(self) -> dict[str, Any]:
        """As JSON: task, options, bytes, the share that is there, and the folder. Raises `Damaged`."""
        try:
            asked = validated(Request, read_json(self.path / REQUEST))
        except ValueError as error:
            raise Damaged(f"{str(self.path)!r} is damaged: {REQUEST}: {error}") from None
        return {
            "task": asked["task"],
            "options": asked["options"],
            "bytes": self.size,
            "done": PartFolder(self.path).done,
            "folder": str(self.path),
        }

    def clear(self) -> None:
        """Raises `DataError` while another process makes it."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(self.path)
        except Timeout:
            raise DataError(f"{str(self.path)!r} is being prepared by another process") from None
        lock.unlink(missing_ok=True)


def entries() -> list[Entry]:
    """All data sets, prepared or set aside, by name."""
    return [Entry(path.parent) for path in sorted(folder().glob(f"*/{REQUEST}"))]


def read_or_make(
    task: Preparable, options: Mapping[str, Any], *, target: str | None, length: int | None
) -> Dataset:
    """From the cache where it is prepared; else it is made here, and not kept."""
    entry = handed_over(task, options) or Entry.of(task, options)
    try:
        made = entry.read()
    except Damaged:
        made = entry.prepare(task, options, tell=lambda share: None)
    if made is None:
        return task.load(target=target, length=length)
    return task.dataset(made, target=target, length=length)


def handed_over(task: Preparable, options: Mapping[str, Any]) -> Entry | None:
    """What another machine made of files that need not be here, and SUBQUAD_PREPARED names; or None."""
    traits = task.traits
    asked = {"format": FORMAT, "task": traits.name, "revision": traits.revision, "options": options}
    for name in os.environ.get("SUBQUAD_PREPARED", "").split():
        entry = Entry(folder() / name)
        stored = read_json(entry.path / REQUEST)
        if all(stored.get(field) == value for field, value in asked.items()):
            return entry
    return None


def request(task: Preparable, options: Mapping[str, Any]) -> Request:
    return Request(
        format=FORMAT,
        task=task.traits.name,
        revision=task.traits.revision,
        options=dict(options),
        files=task.read_content(),
    )


def code(cls: type[Task]) -> str:
    """Stands for the modules that define a task and its bases, so that an edited one makes its data anew."""
    modules = {base.__module__ for base in cls.__mro__ if issubclass(base, Preparable)}
    files = [getattr(sys.modules[name], "__file__", None) for name in sorted(modules)]
    return hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in files if file)).hexdigest()


@contextmanager
def locked(path: Path, tell: TellShare) -> Iterator[None]:
    """Be the one process that writes. The operating system holds the lock, so that a dead one has none."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
