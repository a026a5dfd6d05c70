"""What several seeds say: their mean and spread, how sure the mean is, and which rows they tell apart.

Three or more seeds are needed for any claim. With so few a plain bootstrap is too sure of itself: of
three seeds it calls one pair of equals in four different. It is therefore stretched to the width that
Student's t would give it, which brings the error back to the one in twenty that "95 %" promises.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from operator import mul
from statistics import NormalDist, fmean, stdev
from string import ascii_letters

ENOUGH = 3  # seeds, for an interval or a comparison
CONFIDENCE = 0.95
RESAMPLES = 2000

# two-sided 95 % points of Student's t with 2, 3, … degrees of freedom; any statistical table
STUDENT = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)

Seeds = Mapping[int, float]  # the score of each seed


@dataclass(frozen=True, kw_only=True)
class Interval:
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The scores of one row over its seeds."""

    mean: float
    deviation: float | None  # None: one seed
    best: float
    interval: Interval | None  # of the mean; None: fewer than three seeds
    scores: tuple[float, ...]  # in the order of the seeds


def summary(scores: Seeds, *, higher_is_better: bool) -> Summary:
    """Raises `ValueError` where there is no score."""
    if not scores:
        raise ValueError("there is no score to summarise")
    values = [scores[seed] for seed in sorted(scores)]
    return Summary(
        mean=fmean(values),
        deviation=stdev(values) if len(values) > 1 else None,
        best=max(values) if higher_is_better else min(values),
        interval=interval(values),
        scores=tuple(values),
    )


def interval(values: Sequence[float]) -> Interval | None:
    """Where the mean over ever more seeds lies, with 95 % confidence; None for fewer than three values.

    The bootstrap's percentile interval, stretched about the mean. The same values always give the same.
    """
    count = len(values)
    if count < ENOUGH:
        return None
    mean = fmean(values)
    means = sorted(sum(map(mul, times, values)) / count for times in _resamples(count))
    tail = (1 - CONFIDENCE) / 2
    low, high = (_quantile(means, p) for p in (tail, 1 - tail))
    stretch = _student(count - 1) / NormalDist().inv_cdf(1 - tail) * math.sqrt(count / (count - 1))
    return Interval(low=mean - stretch * (mean - low), high=mean + stretch * (high - mean))


def told_apart(first: Seeds, second: Seeds) -> bool | None:
    """Whether the seeds that both have say that the rows differ; None: fewer than three, so no claim.

    Paired: a seed fixes data order and initial weights, so that what it does to both rows cancels.
    """
    differences = interval([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])
    return None if differences is None else 0.0 not in differences


def groups(rows: Mapping[str, Seeds]) -> dict[str, str]:
    """Letters for the rows: two that share one cannot be told apart. The letters follow the rows' order.

    Each letter stands for a largest set of rows of which no two are told apart. Rows with fewer than three
    seeds have no letter, and neither has a row without another to compare it with.
    """
    letters = dict.fromkeys(rows, "")
    able = [name for name, scores in rows.items() if len(scores) >= ENOUGH]
    if len(able) < 2:
        return letters
    alike: dict[str, set[str]] = {name: set() for name in able}
    for first, second in combinations(able, 2):
        if not told_apart(rows[first], rows[second]):
            alike[first].add(second)
            alike[second].add(first)
    for index, clique in enumerate(sorted(_cliques(alike), key=lambda names: [*map(able.index, names)])):
        for name in clique:
            letters[name] += _letter(index)
    return letters


def _cliques(alike: Mapping[str, set[str]]) -> list[list[str]]:
    """The largest sets of mutually alike names, each in the mapping's order (Bron and Kerbosch 1973)."""
    order = list(alike)
    found: list[list[str]] = []

    def grow(clique: list[str], possible: list[str], done: set[str]) -> None:
        if not possible and not done:
            found.append(sorted(clique, key=order.index))
        while possible:
            name = possible.pop(0)
            near = alike[name]
            grow([*clique, name], [other for other in possible if other in near], done & near)
            done = done | {name}

    grow([], order.copy(), set())
    return found


def _letter(index: int) -> str:
    """a, b, … z, A, … Z, and then letters of other alphabets: always a single one."""
    return ascii_letters[index] if index < len(ascii_letters) else chr(ord("Ā") + index - len(ascii_letters))


def _student(freedom: int) -> float:
    return STUDENT[min(freedom - 2, len(STUDENT) - 1)]


@cache
def _resamples(count: int) -> tuple[tuple[int, ...], ...]:
    """How often each of `count` values is drawn, in each resample: the same for all rows, and every time."""
    generator = random.Random(0)
    drawn = (generator.choices(range(count), k=count) for _ in range(RESAMPLES))
    return tuple(tuple(choice.count(place) for place in range(count)) for choice in drawn)


def _quantile(values: Sequence[float], p: float) -> float:
    """Of ordered values, linear between two of them."""
    place = p * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])
