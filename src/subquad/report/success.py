"""Which runs learnt anything: those above chance, which some tasks grant to some seeds alone.

Chance is the majority. A run is above it where it is better by more than other examples would explain, with
95 % confidence: by the spread of a mean over the test examples, in clusters of one entity, that of the run
or of the majority, whichever is larger. Of right and wrong answers the latter is the binomial test's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from subquad.records import Record
from subquad.report.question import Question
from subquad.report.scores import scores
from subquad.report.statistics import SeedScores, reach

CHANCE = "majority"  # the baseline that knows nothing of the inputs


@dataclass(frozen=True, kw_only=True)
class Success:
    """How many runs of a row are above chance.

    `mean`: of their scores; None: there is none.
    """

    runs: int
    above: int
    mean: float | None

    @property
    def stuck(self) -> int:
        """Runs that are not above it."""
        return self.runs - self.above


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What runs have to be above.

    `level`: of the metric on the test split.
    `reach`: how far off it may be for these examples alone.
    `fewer`: validation has so many times fewer independent examples than test; None: that is not known.
    """

    level: float
    reach: float
    fewer: float | None
    higher_is_better: bool

    def clears(self, value: float, margin: float) -> bool:
        sign = 1 if self.higher_is_better else -1
        return sign * (value - self.level) > margin

    def margin(self, scores: SeedScores, seed: int) -> float | None:
        """By how much a seed has to be better on test; None: nothing is known of its examples."""
        own = reach(scores, seed)
        return None if own is None else max(own, self.reach)

    def margin_on_validation(self, scores: SeedScores, seed: int) -> float | None:
        """The same where there are as many examples as validation has."""
        margin = self.margin(scores, seed)
        return None if margin is None or self.fewer is None else margin * math.sqrt(self.fewer)


def chance_of(question: Question, records: Sequence[Record]) -> Chance | None:
    """None where there is no such baseline, or where nothing is known of its examples."""
    known = scores(
        [each for each in records if each["kind"] == "baseline" and each["spec"]["baseline"] == CHANCE],
        question.metric.name,
    )
    entities = {name: split.entities for name, split in question.splits.items()}
    fewer = entities["test"] / entities["validation"] if entities.get("validation") else None
    for seed, level in known.seeds.items():
        if (spread := reach(known, seed)) is not None:
            return Chance(
                level=level,
                reach=spread,
                fewer=fewer,
                higher_is_better=question.metric.higher_is_better,
            )
    return None


def success(scores: SeedScores, chance: Chance | None) -> Success | None:
    """None where there is no chance to be above, or where nothing is known of the runs' examples."""
    margins = {seed: chance.margin(scores, seed) for seed in scores.seeds} if chance else {}
    known = {seed: margin for seed, margin in margins.items() if margin is not None}
    if not chance or not known:
        return None
    above = [value for seed, margin in known.items() if chance.clears(value := scores.seeds[seed], margin)]
    return Success(runs=len(known), above=len(above), mean=fmean(above) if above else None)
