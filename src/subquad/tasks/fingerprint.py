"""A name for the data that changes when the data do."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from subquad.tasks.source import readable


def fingerprint(files: Iterable[Path], definition: object) -> str:
    """SHA-256 over the files' contents, streamed, and the JSON of what is asked of them.

    Where a file lies and what it is called do not matter; what it holds does. Raises `DataError` where a
    file cannot be read.
    """
    total = hashlib.sha256(json.dumps(definition, sort_keys=True).encode())
    for file in files:
        with readable(str(file)), file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
