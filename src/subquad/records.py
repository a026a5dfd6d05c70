"""Results as files: one JSON document per run, named by the hash of its spec.

    DIR/records/<key>.json             the outcome of a run, success or failure
    DIR/checkpoints/<key>.safetensors  the training checkpoint of a fit under way
    DIR/models/<key>/                  the trained model
    DIR/comparisons/<key>.json         a comparison's settings and the keys of its runs
    DIR/comparison.json                the same of the one that was started or finished last
    DIR/reports/<key>.html             the page of a comparison; DIR/report.html is that of comparison.json

What is read is validated by `recorded`, so that a damaged file is one line that names it.

Files are written atomically. Two folders merge by copying one over the other. No torch
here: a report can be made where nothing can be run.
"""

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from subquad.documents import Damaged, read_json, write_json
from subquad.files import set_aside
from subquad.remote import Remote, is_address

Record = dict[str, Any]  # JSON: "key", "kind", "spec", "status", "reason", "result", "measured", …


def key(kind: str, version: int, spec: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for a spec."""
    text = json.dumps({"kind": kind, "version": version, "spec": spec}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seal(record: Mapping[str, Any]) -> str:
    """Of all that a record holds, by which an edited number is told from the one that was written."""
    fields = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def comparison_key(comparison: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for the runs of a comparison."""
    return key("comparison", 1, run_keys(comparison))


def run_keys(comparison: Mapping[str, Any]) -> dict[str, list[str]]:
    """The keys of a comparison's runs over all its tasks, by kind."""
    kinds = ("baseline", "fit")
    trained = {kind: [key for task in comparison["tasks"] for key in task["keys"][kind]] for kind in kinds}
    return {**trained, "bench": comparison["keys"]["bench"]}


def read_checked(path: Path, check: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """The document in a file. Raises `Damaged` where the check raises `ValueError`."""
    document = read_json(path)
    try:
        check(document)
    except ValueError as error:
        raise Damaged(f"{str(path)!r} is damaged: {error}") from None
    return document


@dataclass(frozen=True)
class Store:
    """A folder of comparisons and their runs.

    remote: where all that is written goes as well; the folder is then this process's copy of it.
    """

    folder: Path
    remote: Remote | None = None

    @classmethod
    def at(cls, place: str) -> "Store":
        """That of a path, or of an address, such as s3://BUCKET/FOLDER.

        Raises `ValueError` for an address that cannot be reached.
        """
        if not is_address(place):
            return cls(Path(place))
        copy = Path(tempfile.mkdtemp(prefix="subquad-"))
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        store = cls(copy, Remote(place))
        for path in (copy / "records", copy / "comparisons", store.latest_path):
            store.fetch(path)
        return store

    def fetch(self, path: Path) -> None:
        """Take a file or a folder of this one from where all goes, if it is there."""
        if self.remote:
            self.remote.pull(self.folder, path.relative_to(self.folder).as_posix())

    def share(self, path: Path) -> None:
        """Write a file or a folder of this one where all goes, too."""
        if self.remote:
            self.remote.push(self.folder, path.relative_to(self.folder).as_posix())

    def record_path(self, key: str) -> Path:
        return self.folder / "records" / f"{key}.json"

    def checkpoint_path(self, key: str) -> Path:
        return self.folder / "checkpoints" / f"{key}.safetensors"

    def model_path(self, key: str) -> Path:
        return self.folder / "models" / key

    def put(self, record: Record) -> None:
        """Write a record. Raises `ValueError`, naming the field, for what is none."""
        from subquad.recorded import check_record

        check_record(record)
        write_json(path := self.record_path(record["key"]), {**record, "digest": seal(record)})
        self.share(path)

    def get(self, key: str) -> Record | None:
        """The record of that key, or None where there is none. Raises `Damaged` for a file that is none."""
        from subquad.recorded import check_record

        def check(record: Mapping[str, Any]) -> None:
            check_record(record)
            if record["key"] != key:
                raise ValueError(f"key: should be that of the file, not {record['key']!r}")
            if record.get("digest", seal(record)) != seal(record):
                raise ValueError("it is not as it was written")

        try:
            record = read_checked(self.record_path(key), check)
        except FileNotFoundError:
            return None
        record.pop("digest", None)
        return record

    def set_aside(self, key: str) -> Path:
        """Make room for another record where a damaged one lies; where that is now."""
        return set_aside(self.record_path(key))

    def read(self, keys: Iterable[str]) -> list[Record]:
        """The records of those keys that exist, in the order of the keys.

        Raises `Damaged`, with the remedy.
        """
        try:
            return [record for key in keys if (record := self.get(key)) is not None]
        except Damaged as damage:
            raise Damaged(f"{damage}; its `subquad compare` again does this run anew") from None

    def runs(self, comparison: Mapping[str, Any]) -> list[Record]:
        """The records of a comparison's runs that exist."""
        known = run_keys(comparison)
        records = self.read(key for keys in known.values() for key in keys)
        metrics = {
            key: task["metric"]
            for task in comparison["tasks"]
            for keys in task["keys"].values()
            for key in keys
        }
        for record in records:
            path = str(self.record_path(record["key"]))
            if record["key"] not in known[record["kind"]]:
                raise Damaged(f"{path!r} holds a {record['kind']}: the comparison has no such run")
            metric = metrics.get(record["key"])
            if "test" in record["result"] and metric not in record["result"]["test"]:
                raise Damaged(f"{path!r} has no {metric!r}, by which the comparison judges: one is damaged")
        return records

    def checkpoints(self) -> set[str]:
        """The keys of the runs that have one."""
        return {name.removesuffix(".safetensors") for name in self.names("checkpoints")}

    def recorded(self) -> set[str]:
        """The keys of the runs that have a record."""
        return {name.removesuffix(".json") for name in self.names("records")}

    def names(self, folder: str) -> list[str]:
        """Those of the files in a folder, where all goes."""
        if self.remote:
            return self.remote.names(folder)
        return [path.name for path in (self.folder / folder).glob("*")]

    def forget_checkpoint(self, key: str) -> None:
        path = self.checkpoint_path(key)
        path.unlink(missing_ok=True)
        if self.remote:
            self.remote.remove(path.relative_to(self.folder).as_posix())

    def where(self, path: Path) -> str:
        """Where people find a file or a folder of this one."""
        if self.remote is None:
            return str(path)
        return f"{self.remote.address.rstrip('/')}/{path.relative_to(self.folder).as_posix()}"

    def share_pages(self) -> None:
        """Share the pages of all comparisons."""
        for path in (self.folder / "reports", self.folder / "report.html"):
            self.share(path)

    def page_path(self, comparison: str) -> Path:
        return self.folder / "reports" / f"{comparison}.html"

    def comparison_path(self, comparison: str) -> Path:
        return self.folder / "comparisons" / f"{comparison}.json"

    @property
    def latest_path(self) -> Path:
        return self.folder / "comparison.json"

    def put_comparison(self, comparison: Mapping[str, Any]) -> None:
        """Write a comparison's document, and that it is the latest. Raises `ValueError` for what is none."""
        from subquad.recorded import check_comparison

        check_comparison(comparison)
        for path in (self.comparison_path(comparison_key(comparison)), self.latest_path):
            write_json(path, comparison)
            self.share(path)

    def get_comparison(self, key: str | None = None) -> dict[str, Any]:
        """The document of a comparison in this folder: the one of that key, or the latest.

        Raises `ValueError` where there is none, and `Damaged` for a file that holds none.
        """
        from subquad.recorded import check_comparison

        def check(document: Mapping[str, Any]) -> None:
            check_comparison(document)
            if key not in {None, comparison_key(document)}:
                raise ValueError("keys: are those of another comparison")

        where = repr(str(self.folder))
        known = sorted(path.stem for path in (self.folder / "comparisons").glob("*.json"))
        path = self.latest_path  # all that an older folder has
        if key is not None and not self.is_latest(key):
            if key not in known:
                raise ValueError(f"no comparison {key!r} in {where}; there are {', '.join(known) or 'none'}")
            path = self.comparison_path(key)
        try:
            return read_checked(path, check)
        except FileNotFoundError:
            raise ValueError(
                f"no comparison in {where}; name the folder given to `subquad compare --out`"
            ) from None
        except Damaged as damage:
            raise Damaged(f"{damage}; start its `subquad compare` again, which writes it anew") from None

    def is_latest(self, key: str) -> bool:
        """Whether no other comparison was started or finished since the one of that key."""
        try:
            return comparison_key(self.get_comparison()) == key
        except ValueError:
            return False

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
