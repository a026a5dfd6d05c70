"""Metrics: which fit which kind of question, which way is better, and their value.

A model's raw output is scored as it is: a logit for `binary` (n,), logits for `multiclass`
(n, classes), the quantity itself for `regression` (n,).
"""

import numpy as np
from jaxtyping import Float, Real

# the first is the default
METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("auc", "accuracy", "macro_f1"),
    "multiclass": ("accuracy", "macro_f1"),
    "regression": ("mae",),
}
DEFAULT_METRIC = {kind: metrics[0] for kind, metrics in METRICS.items()}


def higher_is_better(metric: str) -> bool:
    """Whether more of it is better: false for errors alone."""
    return metric != "mae"


def score(
    metric: str, target: Real[np.ndarray, " n"], output: Float[np.ndarray, " n"] | Float[np.ndarray, "n k"]
) -> float:
    """The metric of a model's raw outputs against the truth.

    auc is the area under the ROC curve; macro_f1 the plain mean of the classes' F1, 0 for a class that
    is never given; mae the mean absolute error, in the target's own units. A binary logit above 0 says
    the second class.

    Raises `ValueError` where the metric is unknown, an output is not finite, or auc sees one class only.
    """
    from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, roc_auc_score

    if not np.isfinite(output).all():
        raise ValueError(
            f"cannot take {metric!r}: {int((~np.isfinite(output)).sum())} outputs are not finite"
        )
    if metric == "auc" and len(np.unique(target)) < 2:
        raise ValueError("cannot take 'auc': every target is of one class")
    chosen = output.argmax(1) if output.ndim == 2 else (output > 0).astype(np.int64)
    match metric:
        case "auc":
            return float(roc_auc_score(target, output))
        case "accuracy":
            return float(accuracy_score(target, chosen))
        case "macro_f1":
            return float(f1_score(target, chosen, average="macro"))
        case "mae":
            return float(mean_absolute_error(target, output))
    raise ValueError(f"unknown metric {metric!r}; there are 'auc', 'accuracy', 'macro_f1' and 'mae'")
