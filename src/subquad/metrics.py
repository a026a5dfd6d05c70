"""Metrics: which way is better, their value, and each example's part in it.

`chosen` is one number an example: a score for auc, the number of a class for accuracy and macro_f1, a
quantity for mae.
"""

import numpy as np
from jaxtyping import Float, Int, Real

LABELS = {  # what metrics are called in sentences
    "auc": "AUC",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mae": "mean absolute error",
    "bits_per_byte": "bits per byte",
    "bits_per_masked_byte": "bits per masked byte",
}
ERRORS = ("mae", "bits_per_byte", "bits_per_masked_byte")  # those of which less is better
BALANCED = ("auc", "macro_f1")  # those that weigh classes alike, however rare one is


def higher_is_better(metric: str) -> bool:
    """Whether more of it is better: false for errors alone."""
    return metric not in ERRORS


def defined(metric: str, target: Real[np.ndarray, " n"]) -> bool:
    """Whether these targets have such a score: one class alone has no auc."""
    return metric != "auc" or len(np.unique(target)) > 1


def score(metric: str, target: Real[np.ndarray, " n"], chosen: Real[np.ndarray, " n"]) -> float:
    """The metric of what was chosen against the truth.

    auc is the area under the ROC curve; macro_f1 the plain mean of the classes' F1, 0 for a class that
    is never given; mae the mean absolute error, in the target's own units.

    Raises `ValueError` where the metric is unknown, a number is not finite, or auc sees one class only.
    """
    from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, roc_auc_score

    if not np.isfinite(chosen).all():
        raise ValueError(f"cannot take {metric!r}: {int((~np.isfinite(chosen)).sum())} are not finite")
    if not defined(metric, target):
        raise ValueError("cannot take 'auc': every target is of one class")
    match metric:
        case "auc":
            return float(roc_auc_score(target, chosen))
        case "accuracy":
            return float(accuracy_score(target, chosen))
        case "macro_f1":
            return float(f1_score(target, chosen, average="macro"))
        case "mae":
            return float(mean_absolute_error(target, chosen))
    raise ValueError(f"unknown metric {metric!r}; there are 'auc', 'accuracy', 'macro_f1' and 'mae'")


def contributions(
    metric: str, target: Real[np.ndarray, " n"], chosen: Real[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """What each example adds to the metric: their mean is `score`, and their variance over n is its variance.

    accuracy: right (1) or wrong (0). mae: the absolute error. auc: the structural components of DeLong,
    DeLong and Clarke-Pearson (1988), an example's rank among those of the other class, over the share of
    its own. macro_f1: the linear term of each example in the classes' F1, which are ratios of means (the
    delta method), around the value.

    Takes what `score` takes, and raises what it raises.
    """
    value = score(metric, target, chosen)
    match metric:
        case "auc":
            return value + _placed(target, chosen, value)
        case "accuracy":
            return (chosen == target).astype(np.float64)
        case "macro_f1":
            return value + _parts_of_f1(target, chosen)
        case _:
            return np.abs(target - chosen).astype(np.float64)


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
    """F1 of a class is 2 mean(hit) / mean(predicted + true); a part is how far an example pulls it."""
    classes = np.union1d(target, chosen)
    parts = np.zeros(len(target))
    for label in classes:
        predicted, true = chosen == label, target == label
        both, hit = predicted.astype(np.float64) + true, predicted & true
        parts += (2 * hit - 2 * hit.mean() / both.mean() * both) / both.mean()
    return parts / len(classes)
