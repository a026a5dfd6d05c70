"""Writes the tables of reports into a page of docs/results.

    python docs/results.py docs/results/PAGE.md FOLDER [FOLDER …]

Each folder is one that `subquad compare --out` filled. A task's table stands between the marks of its name.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from markdown_tables import between_marks, markdown

from subquad.cli.tables import quality
from subquad.report.findings import Findings, findings_in


def board(findings: Findings) -> str:
    """The leaderboard as the terminal shows it."""
    shown = quality(findings.question, findings.rows)
    headings = [str(column.header) for column in shown.columns]
    rows = zip(*(map(str, column.cells) for column in shown.columns), strict=True)
    return markdown(headings, ([f"`{name}`", *cells] for name, *cells in rows))


def with_results(text: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        for findings in findings_in(folder).tasks:
            text = between_marks(text, findings.question.task, "docs/results.py", board(findings))
    return text


if __name__ == "__main__":
    page, *folders = map(Path, sys.argv[1:])
    page.write_text(with_results(page.read_text(), folders))
