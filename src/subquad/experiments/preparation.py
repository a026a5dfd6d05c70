"""Data sets made ahead: once, where otherwise every run's process would make them."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from subquad import tasks
from subquad.experiments.rows import TaskRequest

TellProgress = Callable[[str, float | None], None]  # what is done, and the share of it that is


def quiet(doing: str, share: float | None) -> None:
    """Tell nobody."""


def prepare(requests: Mapping[str, TaskRequest], *, tell: TellProgress) -> tuple[Path, ...]:
    """Prepare tasks, by what they are called, and return the folders of those that can be.

    Where one cannot be kept, a warning says what that costs.
    """
    folders: list[Path | None] = []
    for label, request in requests.items():
        try:
            folders.append(
                tasks.prepare(request.name, tell=partial(tell, f"making {label}"), **request.options)
            )
        except OSError as error:
            warnings.warn(
                f"{label}: every run makes its data anew, since they cannot be kept: {error}; SUBQUAD_CACHE "
                "may name another folder",
                stacklevel=2,
            )
    return tuple(dict.fromkeys(folder for folder in folders if folder))
