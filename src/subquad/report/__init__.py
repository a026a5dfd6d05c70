"""The report of a comparison: the answer in a sentence, its leaderboard, and one HTML page to decide from."""

from pathlib import Path

from subquad.report.answer import headline
from subquad.report.leaderboard import Row, leaderboard

__all__ = ["Row", "headline", "leaderboard", "write"]


def write(folder: Path, comparison: str | None = None) -> Path:
    """Write the page of a comparison, by default of the latest, from DIR; see `subquad.report.page`."""
    from subquad.report.page import write

    return write(folder, comparison)
