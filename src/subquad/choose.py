"""A choice from Python: what `subquad choose` does, and its recommendation as a value."""

from pathlib import Path

from subquad.experiments.choice import plan, run_specs
from subquad.experiments.config import Choice
from subquad.experiments.grid import Observer
from subquad.records import Store
from subquad.report.recommendation import Recommendation, recommendation_of, shortlist


def choose(config: Choice, *, out: str | Path = "runs", observer: Observer | None = None) -> Recommendation:
    """Measure candidates for a purpose on this machine, train those that are fast, and recommend one.

    Runs that `out` holds already are not done again.

    config: what attention is wanted for, and which candidates there are.
    out: the folder of records.
    observer: called as runs begin, go on and end, from several threads. None: no one is.

    Each run is a process of its own, which imports the main module: call this from `if __name__ ==
    "__main__"`. Raises `ValueError` before the first run for what cannot be done; a run that fails is a
    record that says so.
    """
    planned, store, observer = plan(config), Store(Path(out)), observer or Observer()
    measured = run_specs(planned.measurements, config, store, observer=observer)
    exercises = planned.training(shortlist(planned.document, measured))
    trained = run_specs(exercises, config, store, observer=observer)
    return recommendation_of(planned.document, [*measured, *trained])
