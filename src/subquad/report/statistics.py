"""What a test set and a few seeds can say: how sure a score is, and how sure a difference of two.

A score would be another on other test examples, and another from another seed. Both are counted:

- over examples: the metric is a mean of what each example adds to it (for auc DeLong's components: DeLong,
  DeLong and Clarke-Pearson 1988), so that its variance is that of a mean. Examples of one entity are one
  cluster, and it is the sums of clusters that vary independently (for auc: Obuchowski 1997).
- over seeds: the variance of their scores, over their number.

Their sum is a little too large, since what an example does in one seed alone is in both; that is the safe
side. Student's t takes the degrees of freedom of Satterthwaite (1946): twice the square of a variance over
the variance of its estimate, found from fourth moments over clusters, and as for normal scores over seeds.

Two rows are compared by the differences of what the same examples add with the same seeds, so that what is
hard for both cancels. Over all pairs the probabilities are corrected after Holm (1979).

With fewer than three seeds nothing is known of other seeds: what is said then is of these trained models.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

MIN_SEEDS = 3  # seeds, to say something of other seeds
CONFIDENCE = 0.95

Over = Literal["examples and seeds", "examples", "seeds"]
Pair = tuple[str, str]  # of rows


@dataclass(frozen=True, kw_only=True)
class SeedScores:
    """What one row reached."""

    seeds: Mapping[int, float]  # the metric of each seed
    parts: Mapping[int, np.ndarray] = field(default_factory=dict)  # of each seed: what each example adds
    group: np.ndarray = field(default_factory=lambda: np.zeros(0, int))  # the entity of each example

    @property
    def by_example(self) -> bool:
        """Whether every seed says what each example adds; records of older versions do not."""
        sizes = {len(part) for part in self.parts.values()}
        return self.parts.keys() == self.seeds.keys() and sizes == {len(self.group)}

    @property
    def right_or_wrong(self) -> bool:
        """Whether an example adds one or nothing."""
        return all(np.isin(part, (0, 1)).all() for part in self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Interval:
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The scores of one row."""

    mean: float
    deviation: float | None  # over seeds; None: fewer than three
    best: float
    interval: Interval | None  # of the mean, 95 %; None: neither examples nor enough seeds to go by
    over: Over | None  # what the interval knows of
    scores: tuple[float, ...]  # in the order of the seeds


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row beside another on the same examples and seeds: how much higher its score is."""

    value: float
    error: float  # standard error
    freedom: float  # degrees of freedom
    p: float  # how often chance alone would give as much, of this pair by itself
    corrected: float  # the same for this pair among all (Holm)
    least: float  # any larger difference of this pair would be significant
    over: Over
    seeds: int
    examples: int  # 0: not known

    @property
    def significant(self) -> bool:
        """Whether the two can be told apart."""
        return self.corrected < 1 - CONFIDENCE

    def reversed(self) -> "Difference":
        """Second less first."""
        return replace(self, value=-self.value)


class Variance(NamedTuple):
    """The variance of a mean, and the variance of that estimate."""

    value: float
    estimate: float


def summary(scores: SeedScores, *, higher_is_better: bool, independent: float = math.inf) -> Summary:
    """Mean, spread and interval.

    A metric that is better when higher lies within 0 and 1, an error above 0, and so does its interval.
    `independent` is how many answers a perfect score rests on. Raises `ValueError` where there is no score.
    """
    if not scores.seeds:
        raise ValueError("there is no score to summarise")
    values = [scores.seeds[seed] for seed in sorted(scores.seeds)]
    mean = float(np.mean(values))
    over = _over(scores)
    interval = None
    if over is not None:
        spread, freedom = _variance(scores, over, known=scores.right_or_wrong)
        if higher_is_better:
            interval = within_one(mean, spread, freedom, independent)
        elif mean > 0 and (spread > 0 or over == "seeds"):
            reach = math.exp(_quantile(freedom) * math.sqrt(spread) / mean)
            interval = Interval(low=mean / reach, high=mean * reach)
    return Summary(
        mean=mean,
        deviation=float(np.std(values, ddof=1)) if len(values) >= MIN_SEEDS else None,
        best=max(values) if higher_is_better else min(values),
        interval=interval,
        over=over if interval else None,
        scores=tuple(values),
    )


def reach(scores: SeedScores, seed: int) -> float | None:
    """How far off the score of one seed may be for its examples alone, with 95 % confidence.

    None where nothing is known of its examples.
    """
    if not scores.by_example:
        return None
    alone = replace(scores, seeds={seed: scores.seeds[seed]}, parts={seed: scores.parts[seed]})
    if _over(alone) is None:
        return None
    variance, freedom = _variance(alone, "examples", known=alone.right_or_wrong)
    return _quantile(freedom) * math.sqrt(variance)


def within_one(mean: float, variance: float, freedom: float, independent: float) -> Interval:
    """Wilson's interval (1927) for as many right or wrong answers as would have this variance.

    Korn and Graubard (1998) call that the effective sample size. A perfect score varies in no sample and is
    still not sure: it rests on `independent` answers.
    """
    mean = min(max(mean, 0.0), 1.0)
    alike = mean * (1 - mean)
    if alike and not variance:
        return Interval(low=mean, high=mean)
    size = alike / variance if alike else independent
    t = _quantile(freedom)
    shrink = 1 / (1 + t * t / size)
    middle = shrink * (mean + t * t / (2 * size))
    reach = shrink * t * math.sqrt(alike / size + (t / (2 * size)) ** 2)
    return Interval(low=max(0.0, middle - reach), high=min(1.0, middle + reach))


def difference(first: SeedScores, second: SeedScores) -> Difference | None:
    """First less second, over what both have; None where that is too little. Of one pair: see `corrected`."""
    both = sorted(first.seeds.keys() & second.seeds.keys())
    seeds = {seed: first.seeds[seed] - second.seeds[seed] for seed in both}
    differences = SeedScores(seeds=seeds)
    if first.by_example and second.by_example and np.array_equal(first.group, second.group):
        parts = {seed: first.parts[seed] - second.parts[seed] for seed in both}
        differences = SeedScores(seeds=seeds, parts=parts, group=first.group)
    over = _over(differences)
    if over is None:
        return None
    value = float(np.mean(list(seeds.values())))
    variance, freedom = _variance(differences, over)
    p = _chance(value, math.sqrt(variance), freedom)
    if over != "seeds":
        moved = np.count_nonzero(_sums(differences.group, np.mean(list(differences.parts.values()), 0)))
        p = max(p, 2.0 ** min(0, 1 - int(moved)))  # what the signs of so many clusters can say at most
    return Difference(
        value=value,
        error=math.sqrt(variance),
        freedom=freedom,
        p=p,
        corrected=p,
        least=_quantile(freedom) * math.sqrt(variance),
        over=over,
        seeds=len(both),
        examples=len(differences.group),
    )


def holm_corrected(differences: Mapping[Pair, Difference]) -> dict[Pair, Difference]:
    """The differences with their probabilities among as many (Holm 1979), in the order given."""
    order = sorted(differences, key=lambda pair: differences[pair].p)
    highest, made = 0.0, {}
    for place, pair in enumerate(order):
        each = differences[pair]
        highest = min(1.0, max(highest, (len(order) - place) * each.p))
        least = _quantile(each.freedom, pairs=len(order)) * each.error
        made[pair] = replace(each, corrected=highest, least=least)
    return {pair: made[pair] for pair in differences}


def _over(scores: SeedScores) -> Over | None:
    """What can be counted of the scores."""
    enough = len(scores.seeds) >= MIN_SEEDS
    if scores.by_example and len(np.unique(scores.group)) > 1:
        return "examples and seeds" if enough else "examples"
    return "seeds" if enough else None


def _variance(scores: SeedScores, over: Over, *, known: bool = False) -> tuple[float, float]:
    """The variance of the mean over what is to be counted, and its degrees of freedom.

    `known`: of right or wrong answers the mean tells the variance, and few of either make it no less sure.
    """
    spreads, most = [], 0
    if over != "seeds":
        spread, clusters = _over_examples(scores)
        if known:
            spread = Variance(spread.value, 2 * spread.value**2 / (clusters - 1))
        spreads, most = [spread], clusters - 1
    if over != "examples":
        spreads.append(_over_seeds(scores))
        most += len(scores.seeds) - 1
    value, estimate = (sum(parts) for parts in zip(*spreads, strict=True))
    return value, min(max(2 * value**2 / estimate, 1.0), most) if estimate else float(most)


def _over_examples(scores: SeedScores) -> tuple[Variance, int]:
    mean = np.mean([scores.parts[seed] for seed in scores.seeds], 0)
    sums = _sums(scores.group, mean - mean.mean()) / len(mean)
    clusters = len(sums)
    squares = sums**2 * clusters / (clusters - 1)
    return Variance(float(squares.sum()), float(clusters * squares.var(ddof=1))), clusters


def _sums(group: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Of each entity's examples."""
    return np.bincount(np.unique(group, return_inverse=True)[1], parts)


def _over_seeds(scores: SeedScores) -> Variance:
    values = list(scores.seeds.values())
    variance = float(np.var(values, ddof=1)) / len(values)
    return Variance(variance, 2 * variance**2 / (len(values) - 1))


def _chance(value: float, error: float, freedom: float) -> float:
    """Of both sides of Student's t."""
    if not error:
        return float(not value)
    return float(2 * stdtr(freedom, -abs(value) / error))


def _quantile(freedom: float, *, pairs: int = 1) -> float:
    return float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / (2 * pairs)))
