"""A comparison from Python: what `subquad compare` does, and what it found as a value."""

from pathlib import Path

from subquad import report
from subquad.experiments.comparison import plan, run
from subquad.experiments.config import Comparison
from subquad.experiments.grid import Observer
from subquad.records import Store, comparison_key
from subquad.report.findings import ComparisonFindings, findings_in


def compare(
    config: Comparison | None = None, *, out: str | Path = "runs", observer: Observer | None = None
) -> ComparisonFindings:
    """Train and measure mechanisms side by side, write the report to `out`, and return what it says.

    Runs that `out` holds already are not done again, and a run that was interrupted goes on where it was.

    config: what is compared, on what, and how; None: as `subquad compare` without options.
    out: the folder of records, models and of report.html; with the executor 'ray' also an address of one,
        such as s3://BUCKET/FOLDER.
    observer: called as runs begin, go on and end, from several threads. None: no one is.

    Each run is a process of its own, which imports the main module: call this from `if __name__ ==
    "__main__"`. Raises `ValueError` before the first run for what cannot be done; a run that fails is a
    record that says so.
    """
    config, store = config or Comparison(), Store.at(str(out))
    planned = plan(config)
    run(planned, config, store, observer=observer or Observer())
    key = comparison_key(planned.document)
    report.write(store.folder, key)
    store.share_pages()
    return findings_in(store.folder, key)
