"""Atomic file writes, and reading of regular files only.

A process that is killed in the middle of a write leaves a draft, `.NAME.draft-HOST-PID-THREAD`, which the
next writer in that folder clears away.
"""

import errno
import os
import platform
import re
import stat
import time
from contextlib import suppress
from functools import cache
from hashlib import sha256
from itertools import count
from pathlib import Path
from threading import get_ident

DRAFT = re.compile(r"\..+\.draft-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-\d+")
OLD = 24 * 3600.0  # seconds after which nobody still writes at a draft


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it, at any moment, sees all of it or its predecessor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_drafts(path.parent)
    draft = path.with_name(f".{path.name}.draft-{host()}-{os.getpid()}-{get_ident()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:  # a full disk names no file
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read_whole(path: Path) -> bytes:
    """The content of a file; `OSError` for a folder, and for a pipe or a device, which may have no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        what = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(what, "Is a directory" if path.is_dir() else "Not a regular file", str(path))
    return path.read_bytes()


def clear_drafts(folder: Path) -> None:
    """Remove the drafts of writers that are dead, and those that are too old to have one."""
    for entry in os.scandir(folder):
        if match := DRAFT.fullmatch(entry.name):
            with suppress(OSError):  # another writer was faster, or it is not ours to remove
                dead = match["host"] == host() and not alive(int(match["process"]))
                if dead or time.time() > entry.stat(follow_symlinks=False).st_mtime + OLD:
                    os.unlink(entry.path)


@cache
def host() -> str:
    """Stands for this machine: the process ids of another one say nothing here."""
    return sha256(platform.node().encode()).hexdigest()[:8]


def alive(process: int) -> bool:
    """Whether there is a process of that id."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # someone else's
        return True
    return True


def set_aside(path: Path) -> Path:
    """Move what stands there to a name of its own beside it: the place is free, and nothing is lost."""
    names = (f"{path.name}.damaged{f'-{number}' if number else ''}" for number in count())
    aside = next(aside for name in names if not os.path.lexists(aside := path.with_name(name)))
    path.rename(aside)
    return aside
