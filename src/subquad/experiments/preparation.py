"""Data sets made ahead: once, where otherwise every run's process would make them."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

from subquad import tasks
from subquad.experiments.rows import task_of

TellTaskShare = Callable[[str, float | None], None]  # the task, and what `tasks.prepare` tells


def prepare(texts: Sequence[str], *, tell: TellTaskShare = lambda task, share: None) -> None:
    """Prepare tasks, each "NAME:option=value,…". Where one cannot be kept, a warning says what that costs."""
    for text in texts:
        name, options = task_of(text)[:2]
        try:
            tasks.prepare(name, tell=partial(tell, text), **options)
        except OSError as error:
            warnings.warn(
                f"{text}: every run makes its data anew, since they cannot be kept: {error}; SUBQUAD_CACHE "
                "may name another folder",
                stacklevel=2,
            )
