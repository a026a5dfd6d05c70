"""Results as files: one JSON document per run, named by the hash of what was asked.

    DIR/records/<key>.json             what came of a run, whatever came of it
    DIR/checkpoints/<key>.safetensors  how far a fit has come, while it runs
    DIR/models/<key>/                  the trained model
    DIR/comparison.json                what the latest comparison asked, and the keys of its runs

A file is written whole or not at all. Two folders merge by copying one over the other. No torch
here: a report can be made where nothing can be run.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from subquad.files import write_whole

Record = dict[str, Any]  # JSON: "key", "kind", "spec", "status", "reason", "result", "measured", …


def key(kind: str, version: int, spec: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for what was asked."""
    text = json.dumps({"kind": kind, "version": version, "spec": spec}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(document, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `ValueError` names the file that is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        raise ValueError(f"{str(path)!r} is not a JSON file ({error}); delete it and start again") from None
    if not isinstance(document, dict):
        raise ValueError(f"{str(path)!r} holds no JSON object; delete it and start again")
    return document


@dataclass(frozen=True)
class Store:
    """The folder of a comparison."""

    folder: Path

    def record_path(self, key: str) -> Path:
        return self.folder / "records" / f"{key}.json"

    def checkpoint_path(self, key: str) -> Path:
        return self.folder / "checkpoints" / f"{key}.safetensors"

    def model_path(self, key: str) -> Path:
        return self.folder / "models" / key

    def put(self, record: Record) -> None:
        write_json(self.record_path(record["key"]), record)

    def get(self, key: str) -> Record | None:
        """The record of that key, or None where there is none."""
        with suppress(FileNotFoundError):
            return read_json(self.record_path(key))
        return None

    def read(self, keys: Iterable[str]) -> list[Record]:
        """The records of those keys that exist, in the order of the keys."""
        return [record for key in keys if (record := self.get(key)) is not None]

    def forget_checkpoint(self, key: str) -> None:
        path = self.checkpoint_path(key)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # there is no such folder, or others are in it
            path.parent.rmdir()

    def put_comparison(self, comparison: Mapping[str, Any]) -> None:
        write_json(self.folder / "comparison.json", comparison)

    def get_comparison(self) -> dict[str, Any]:
        """What the latest comparison in this folder asked."""
        path = self.folder / "comparison.json"
        if not path.exists():
            raise ValueError(
                f"no comparison in {str(self.folder)!r}; name the folder given to `subquad compare --out`"
            )
        return read_json(path)

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may do the run; no other may until the block ends or this process dies.

        The operating system holds the claim, so that a dead process has none.
        """
        path = self.folder / ".claims" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
