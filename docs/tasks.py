"""Writes what docs/tasks.md shows of the tasks: their table, pictures of `pathfinder`, and with
`--baselines` what is reached without attention, which reads the data that SUBQUAD_DATA names.
"""

import argparse
from pathlib import Path

import numpy as np
from markdown_tables import between_marks, markdown
from PIL import Image

from subquad import tasks
from subquad.report import formats
from subquad.task import Task, baseline_result
from subquad.tasks.curves import pictures
from subquad.tasks.pathfinder import Pathfinder
from subquad.tasks.random_bits import RandomBits

FOLDER = Path(__file__).parent
PAGE, PICTURES = FOLDER / "tasks.md", FOLDER / "pathfinder.png"
SIDES = (32, 64, 128, 256)  # from left to right; above apart, below joined
SHOWN, GAP = 256, 8  # pixels of each picture, and between two
MEASURED = (
    "listops",
    "text",
    "text:tokens=bpe",
    "matching",
    "matching:pairs=aan_mini",
    "image",
    "pathfinder:size=small",
    "language",
    "language:target=masked",
    "recall",
    "copying",
    "needle",
    "adding",
)


def with_tasks(text: str) -> str:
    """The page's text with the table of tasks made anew."""
    return between_marks(text, "tasks", "docs/tasks.py", known())


def known() -> str:
    """The tasks and their traits, as a table."""
    headings = ("task", "asks", "token", "length", "sizes", "source")
    return markdown(headings, (row(cls) for cls in tasks.catalog().values()))


def row(cls: type[Task]) -> tuple[str, ...]:
    traits = cls.traits
    link = (
        f"<{traits.source}>"
        if traits.source.startswith("http") and " " not in traits.source
        else traits.source
    )
    sizes = ", ".join(f"`{size}`" for size in traits.sizes) or "–"
    return f"`{traits.name}`", traits.description, traits.unit, f"{traits.length:,}", sizes, link


def baselines() -> str:
    """What a score must clear, on the whole test split of each."""
    return markdown(("task", "metric", "baselines"), map(measured, MEASURED))


def measured(text: str) -> tuple[str, ...]:
    from subquad.experiments.rows import task_of

    request = task_of(text)
    data = tasks.build(request.name, **request.options).load(target=request.target, length=None)
    reached = []
    for baseline in data.baselines():
        output = data.baseline(baseline.name, length=data.longest, seed=0)
        value = baseline_result(data, output)["test"][data.objective.metric]
        reached.append(f"{baseline.name} {formats.score(value)}")
    return f"`{text}`", data.objective.metric_label, ", ".join(reached)


def sheet() -> np.ndarray:
    """Pictures of `pathfinder` of every side, apart above and joined below."""
    columns = [column(side) for side in SIDES]
    gap = np.full((columns[0].shape[0], GAP), 128, np.uint8)
    return np.concatenate([part for each in columns for part in (each, gap)][:-1], axis=1)


def column(side: int) -> np.ndarray:
    task = Pathfinder(side=side)
    drawn = pictures(task.style(1 if side < 128 else 3), RandomBits(side), np.array([False, True]))
    apart, joined = drawn.repeat(SHOWN // side, axis=1).repeat(SHOWN // side, axis=2)
    return np.concatenate([apart, np.full((GAP, SHOWN), 128, np.uint8), joined])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baselines", action="store_true")
    text = with_tasks(PAGE.read_text())
    if parser.parse_args().baselines:
        text = between_marks(text, "baselines", "docs/tasks.py", baselines())
    PAGE.write_text(text)
    Image.fromarray(sheet()).save(PICTURES, optimize=True)
