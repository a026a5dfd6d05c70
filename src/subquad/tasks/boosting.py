"""Gradient boosted trees: the cheap reader that transactions are usually given to, as a baseline.

They read recency, frequency, amounts and category counts of the same last events that the models see. How
many trees there are is chosen on validation.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real

from subquad.fields import SPLITS, Split
from subquad.metrics import score
from subquad.objectives import Supervised
from subquad.tasks.encoding import Histories, spread
from subquad.tasks.examples import Examples

TREES = 200  # the most of them
VISITS = (1, 2, 4, 8, 16, 32)  # whose ages are features, from the last one back
HALVINGS = 6  # windows of a half, a quarter, … of the longest training age
COUNTED = 64  # categories of each column that are counted one by one
_PIECE = 2048  # examples whose events are laid out at a time


def boosting(
    histories: Histories,
    examples: Mapping[Split, Examples],
    sizes: tuple[int, ...],
    objective: Supervised,
    *,
    length: int,
    seed: int,
) -> np.ndarray:
    """What gradient boosted trees say of test, by `features` of the last `length` events."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    learnt = examples["train"]
    oldest = float((learnt.until - histories.time[learnt.start]).max())
    train, validation, test = (
        features(histories, examples[split], sizes, length=length, oldest=oldest) for split in SPLITS
    )
    known = np.isfinite(train).any(0)  # scikit-learn cannot bin a column without a number
    train, validation, test = train[:, known], validation[:, known], test[:, known]
    shape: dict[str, Any] = {"max_iter": TREES, "learning_rate": 0.05, "max_leaf_nodes": 15}
    shape |= {"early_stopping": False, "random_state": seed}
    if objective.quantity:
        trees = HistGradientBoostingRegressor(loss="absolute_error", **shape)
        stages = trees.staged_predict
    else:
        trees = HistGradientBoostingClassifier(**shape)
        stages = trees.staged_decision_function
    with threadpool_limits(1):  # the same sums on any machine; and on tables of this size, sooner
        trees.fit(train, learnt.target)
        best = _best(objective, examples["validation"].target, stages(validation))
        chosen = next(islice(stages(test), best, None))
    return _flat(chosen)


def features(
    histories: Histories, examples: Examples, sizes: tuple[int, ...], *, length: int, oldest: float
) -> Float[np.ndarray, "n f"]:
    """What the trees read of each example's last `length` events, a row each.

    Recency: the ages of the first event, and of the last, 2nd, 4th, … 32nd last visit (a visit is all
    events of one moment). Frequency: events and visits, and events within a half, a quarter, … of `oldest`.
    Amounts: mean, deviation, least, greatest, last and sum of each numeric column, its sums within the
    same windows, and mean and deviation of the gaps. Counts of the 64 most frequent categories of each
    column, and of all others together. NaN where a history is too short.
    """
    start = np.maximum(examples.start, examples.stop - length)
    pieces = [
        _features(histories, start[piece], examples.stop[piece], examples.until[piece], sizes, oldest)
        for piece in (slice(first, first + _PIECE) for first in range(0, len(examples), _PIECE))
    ]
    return np.concatenate(pieces)


def _features(
    histories: Histories,
    start: Int[np.ndarray, " b"],
    stop: Int[np.ndarray, " b"],
    until: Float[np.ndarray, " b"],
    sizes: tuple[int, ...],
    oldest: float,
) -> Float[np.ndarray, "b f"]:
    count = stop - start
    owner = np.repeat(np.arange(len(count)), count)
    event = spread(start, stop)
    first = np.cumsum(count) - count  # where each example's events begin among these
    age = until[owner] - histories.time[event]
    logs = histories.logs[event].astype(np.float64)
    amounts = np.sign(logs[:, :-1]) * np.expm1(np.abs(logs[:, :-1]))

    visit = logs[:, -1] > 0
    visit[first] = True
    visits = np.bincount(owner, visit)
    from_last = visits[owner] - (np.cumsum(visit) - np.cumsum(visits)[owner] + visits[owner]) + 1
    nth = np.full((len(count), len(VISITS)), np.nan)
    for column, number in enumerate(VISITS):
        chosen = visit & (from_last == number)
        nth[owner[chosen], column] = age[chosen]

    recent = [age <= oldest / 2**halving for halving in range(1, HALVINGS + 1)]
    mean = np.stack([np.bincount(owner, channel) for channel in logs.T], 1) / count[:, None]
    square = np.stack([np.bincount(owner, channel) for channel in (logs**2).T], 1) / count[:, None]
    return np.concatenate(
        [
            age[first][:, None],
            nth,
            np.stack([count, visits, *(np.bincount(owner, within, len(count)) for within in recent)], 1),
            mean,
            np.sqrt(np.maximum(square - mean**2, 0)),
            np.minimum.reduceat(logs, first),
            np.maximum.reduceat(logs, first),
            logs[first + count - 1],
            *(
                np.bincount(owner, amount * within, len(count))[:, None]
                for amount in amounts.T
                for within in (np.ones_like(visit), *recent)
            ),
            *(
                _counts(owner, histories.categorical[event, column], len(count), size)
                for column, size in enumerate(sizes)
            ),
        ],
        axis=1,
    )


def _counts(
    owner: Int[np.ndarray, " e"], ids: Int[np.ndarray, " e"], rows: int, size: int
) -> Float[np.ndarray, "b k"]:
    width = min(size, COUNTED + 1)
    place = np.where(ids < width, ids, 0)  # the most frequent have the smallest ids; 0 is all others
    return np.bincount(owner * width + place, minlength=rows * width).reshape(rows, width).astype(np.float64)


def _best(objective: Supervised, truth: Real[np.ndarray, " n"], stages: Iterable[np.ndarray]) -> int:
    """The stage with the best validation score."""
    sign = 1 if objective.higher_is_better else -1
    scores = [sign * score(objective.metric, truth, objective.choose(_flat(stage))) for stage in stages]
    return int(np.argmax(scores))


def _flat(output: np.ndarray) -> np.ndarray:
    """One column as none: the trees give (n, 1) for two classes."""
    return output[:, 0] if output.ndim == 2 and output.shape[1] == 1 else output
