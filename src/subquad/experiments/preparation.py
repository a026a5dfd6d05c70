"""Data sets made ahead: once, where otherwise every run's process would make them."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial

from subquad import tasks
from subquad.experiments.rows import TaskRequest

TellProgress = Callable[[str, float | None], None]  # what is done, and the share of it that is


def quiet(doing: str, share: float | None) -> None:
    """Tell nobody."""


def prepare(requests: Mapping[str, TaskRequest], *, tell: TellProgress) -> None:
    """Prepare tasks, by what they are called. Where one cannot be kept, a warning says what that costs."""
    for label, request in requests.items():
        try:
            tasks.prepare(request.name, tell=partial(tell, f"making {label}"), **request.options)
        except OSError as error:
            warnings.warn(
                f"{label}: every run makes its data anew, since they cannot be kept: {error}; SUBQUAD_CACHE "
                "may name another folder",
                stacklevel=2,
            )
