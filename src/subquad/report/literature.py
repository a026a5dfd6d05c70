"""Published results for a task: another layer, from other machines, budgets and splits.

Scores alone, each with its source. Speeds and memory are not here: no ratio is made to another machine.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from subquad.report.question import Question


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What one paper reports for a task.

    `source`: authors, year, arXiv number and table.
    `note`: what should be known of its figures; "" for nothing.
    `percent`: the metric in per cent, by the paper's name of the model.
    """

    name: str
    source: str
    note: str
    percent: Mapping[str, float]


def published(question: Question) -> list[Publication]:
    """What is known for the task by the same metric; published.json holds it, by the task's name."""
    known = json.loads((files("subquad.report") / "published.json").read_text("utf-8"))
    return [
        Publication(
            name=entry["name"],
            source=entry["source"],
            note=entry["note"],
            percent=entry["percent"][question.task],
        )
        for entry in known
        if entry["metric"] == question.metric.name and question.task in entry["percent"]
    ]
