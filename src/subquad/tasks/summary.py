"""What a reader should know of a task's data, as JSON: counts, classes, lengths."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from subquad.tasks.encoding import Encoding, Histories
from subquad.tasks.events import Examples
from subquad.tasks.target import Target


def described(
    histories: Histories, encoding: Encoding, target: Target, parts: Mapping[str, Examples]
) -> dict[str, Any]:
    """Sizes of the data and of each split, with the answers' distribution and the histories' lengths."""
    return {
        "target": target.name,
        "kind": target.kind,
        "metric": target.metric,
        "events": len(histories.time),
        "entities": len(histories.entities),
        "inputs": [*encoding.categorical, *encoding.channels],
        "categories": dict(zip(encoding.categorical, (size - 1 for size in encoding.sizes), strict=True)),
        "ages count from": encoding.end,
        "splits": {split: _split(examples, target) for split, examples in parts.items()},
    }


def _split(examples: Examples, target: Target) -> dict[str, Any]:
    lengths = examples.stop - examples.start
    described: dict[str, Any] = {
        "examples": len(examples),
        "entities": len(np.unique(examples.entity)),
        "history": {
            "median": float(np.median(lengths)),
            "longest": int(lengths.max()),
        },
    }
    if target.classes:
        counts = np.bincount(examples.target, minlength=len(target.classes))
        return {**described, "classes": dict(zip(target.classes, counts.tolist(), strict=True))}
    return {**described, "mean": float(examples.target.mean()), "deviation": float(examples.target.std())}
