"""Metrics: which fit which kind of question, which way is better, their value, and each example's part in it.

A model's raw output is scored as it is: a logit for `binary` (n,), logits for `multiclass`
(n, classes), the quantity itself for `regression` (n,).
"""

import numpy as np
from jaxtyping import Float, Int, Real

# the first is the default
METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("auc", "accuracy", "macro_f1"),
    "multiclass": ("accuracy", "macro_f1"),
    "regression": ("mae",),
}
DEFAULT_METRIC = {kind: metrics[0] for kind, metrics in METRICS.items()}

LABELS = {  # what metrics are called in sentences
    "auc": "AUC",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mae": "mean absolute error",
}  # in sentences
BALANCED = ("auc", "macro_f1")  # those that weigh classes alike, however rare one is


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
    chosen = _chosen(output)
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


def contributions(
    metric: str, target: Real[np.ndarray, " n"], output: Float[np.ndarray, " n"] | Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " n"]:
    """What each example adds to the metric: their mean is `score`, and their variance over n is its variance.

    accuracy: right (1) or wrong (0). mae: the absolute error. auc: the structural components of DeLong,
    DeLong and Clarke-Pearson (1988), an example's rank among those of the other class, over the share of
    its own. macro_f1: the linear term of each example in the classes' F1, which are ratios of means (the
    delta method), around the value.

    Takes what `score` takes, and raises what it raises.
    """
    value = score(metric, target, output)
    match metric:
        case "auc":
            return value + _placed(target, output, value)
        case "accuracy":
            return (_chosen(output) == target).astype(np.float64)
        case "macro_f1":
            return value + _parts_of_f1(target, _chosen(output))
        case _:
            return np.abs(target - output).astype(np.float64)


def _placed(
    target: Real[np.ndarray, " n"], output: Float[np.ndarray, " n"], value: float
) -> Float[np.ndarray, " n"]:
    """How far each example's share of won pairs is from the mean, by the size of its class."""
    parts = np.empty(len(target))
    positive = target == target.max()
    for mine, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(sign * output[~mine])
        won = np.searchsorted(others, sign * output[mine]) + np.searchsorted(
            others, sign * output[mine], side="right"
        )
        parts[mine] = (won / (2 * len(others)) - value) / mine.mean()
    return parts


def _parts_of_f1(target: Real[np.ndarray, " n"], chosen: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """F1 of a class is 2 mean(hit) / mean(said + true); a part is how far an example pulls that ratio."""
    classes = np.union1d(target, chosen)
    parts = np.zeros(len(target))
    for each in classes:
        said, true = chosen == each, target == each
        both, hit = said.astype(np.float64) + true, said & true
        parts += (2 * hit - 2 * hit.mean() / both.mean() * both) / both.mean()
    return parts / len(classes)


def _chosen(output: Float[np.ndarray, " n"] | Float[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
    return output.argmax(1) if output.ndim == 2 else (output > 0).astype(np.int64)
