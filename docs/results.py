"""Writes the tables of reports into a page of the docs.

    python docs/results.py docs/results/PAGE.md FOLDER [FOLDER …]

Each folder is one that `subquad compare --out` filled. A task's table stands between the marks of its name; a
page may have besides, between those of "language by position in the document", what rows reach by parts.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from markdown_tables import between_marks, markdown

from subquad.cli.tables import quality
from subquad.report import formats
from subquad.report.findings import Findings, findings_in
from subquad.report.leaderboard import carried
from subquad.report.parts import PartScores


def board(findings: Findings) -> str:
    """The leaderboard as the terminal shows it, with the size of a state that was carried."""
    shown = quality(findings.question, findings.rows)
    headings = [str(column.header) for column in shown.columns]
    lines = zip(*(map(str, column.cells) for column in shown.columns), strict=True)
    rows = [[f"`{name}`", *cells] for name, *cells in lines]
    if carried(findings.rows):
        headings.insert(1, "state, MB")
        for row, cells in zip(findings.rows, rows, strict=True):
            cells.insert(1, formats.significant(row.costs.state_mb if row.costs else None))
    return markdown(headings, rows)


def by_part(scores: PartScores) -> str:
    """Of every row that has parts the mean over the seeds, in each part."""
    headings = [scores.title, *(part.name for part in scores.parts)]
    return markdown(headings, ([f"`{row}`", *map(formats.score, scores.means(row))] for row in scores.scores))


def with_results(text: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        for findings in findings_in(folder).tasks:
            task = findings.question.task
            made = {task: board(findings)}
            made |= {f"{task} by {scores.title}": by_part(scores) for scores in findings.parts}
            for name in [name for name in made if name == task or f"<!-- {name}:" in text]:
                text = between_marks(text, name, "docs/results.py", made[name])
    return text


if __name__ == "__main__":
    page, *folders = map(Path, sys.argv[1:])
    page.write_text(with_results(page.read_text(), folders))
