"""What a reader should know of a task's data, as JSON: counts, classes, lengths."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from subquad.objectives import Supervised
from subquad.tasks.encoding import Encoding, Histories
from subquad.tasks.examples import Examples


def described(
    histories: Histories,
    encoding: Encoding,
    target: str,
    objective: Supervised,
    parts: Mapping[str, Examples],
) -> dict[str, Any]:
    """Sizes of the data and of each split, with the answers' distribution and the histories' lengths."""
    return {
        "target": target,
        "kind": objective.kind,
        "metric": objective.metric,
        "events": len(histories.time),
        "entities": len(histories.entities),
        "inputs": [*encoding.categorical, *encoding.channels],
        "categories": dict(zip(encoding.categorical, (size - 1 for size in encoding.sizes), strict=True)),
        "ages count from": encoding.end,
        "splits": {split: _split(examples, objective) for split, examples in parts.items()},
    }


def _split(examples: Examples, objective: Supervised) -> dict[str, Any]:
    lengths = examples.stop - examples.start
    described: dict[str, Any] = {
        "examples": len(examples),
        "entities": len(np.unique(examples.entity)),
        "history": {
            "median": float(np.median(lengths)),
            "longest": int(lengths.max()),
        },
    }
    if objective.classes:
        counts = np.bincount(examples.target, minlength=len(objective.classes))
        return {**described, "classes": dict(zip(objective.classes, counts.tolist(), strict=True))}
    return {**described, "mean": float(examples.target.mean()), "deviation": float(examples.target.std())}
