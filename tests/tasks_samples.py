"""Several tasks compared together, to show a report on. EVERY FIGURE HERE IS MADE UP; none was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import report_samples as made_up

QUALITY = {
    "transactions": {},
    "recall": {"softmax": 0.99, "linear": 0.32, "performer": 0.95, "infinity": 0.99, "reformer": 0.6},
    "text": {"softmax": 0.63, "linear": 0.64, "performer": 0.63, "infinity": 0.61, "reformer": 0.61},
    "spending": {"softmax": 20.0, "linear": 21.0, "performer": 20.1, "infinity": 30.0, "reformer": 25.0},
}
BASELINES = {
    "transactions": {"majority": 0.5, "boosting": 0.672},
    "recall": {"majority": 0.03, "first value": 0.125},
    "text": {"majority": 0.5, "bag of words": 0.85},  # above every mechanism
    "spending": {"majority": 40.0},
}
METRICS = {"transactions": "auc", "recall": "accuracy", "text": "accuracy", "spending": "mae"}
REFUSAL = "'linear' has no causal form"


def sample(
    *names: str,
    rows: Sequence[Mapping[str, Any]] = made_up.ROWS,
    refused: Mapping[str, str] | None = None,
    **settings: Any,
) -> list[made_up.Task]:
    """Tasks with their records; `refused` has the mechanism that a task cannot take, by task."""
    tasks = []
    for name in names:
        without = (refused or {}).get(name)
        mine = [row for row in rows if row["label"] != without]
        title = f"value from {name}"
        setting = made_up.comparison(mine, task=name, metric=METRICS[name], title=title, **settings)
        setting["data"] = {**setting["data"], "fingerprint": name}
        setting["attention"] = [row["label"] for row in rows]
        setting["refusals"] = [{"label": without, "reason": REFUSAL}] if without else []
        made = made_up.sample(setting, quality=QUALITY[name], baselines=BASELINES[name])
        tasks.append((setting, made))
    return tasks
