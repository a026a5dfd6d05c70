"""What the records say each row reached, and which rows that tells apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from subquad.records import Record
from subquad.report.question import Question
from subquad.report.statistics import Difference, Pair, SeedScores, difference, holm_corrected


def scores(records: Sequence[Record], metric: str) -> SeedScores:
    """Of the runs of one row that came to their end."""
    done = [record for record in records if record["status"] == "ok"]
    examples = {
        record["spec"]["seed"]: record["result"]["examples"]
        for record in done
        if "examples" in record["result"]
    }
    known = next(iter(examples.values()), {"group": []})
    return SeedScores(
        seeds={record["spec"]["seed"]: record["result"]["test"][metric] for record in done},
        parts={seed: np.array(each["contribution"]) for seed, each in examples.items()},
        group=np.array(known["group"], dtype=int),
    )


def independent(question: Question) -> float:
    """How many independent answers a perfect score rests on: the entities of the test split.

    A metric that weighs classes alike rests on no more than if all of them were as rare as the rarest.
    """
    test = question.splits.get("test")
    if not test or not test.examples:
        return math.inf
    if question.metric.balanced and (counts := [count for count in test.classes.values() if count]):
        return test.entities / test.examples * len(counts) * min(counts)
    return float(test.entities)


def compared(
    rows: Mapping[str, SeedScores], baselines: Mapping[str, SeedScores]
) -> dict[str, dict[str, Difference]]:
    """Each row's difference from every other row and from each baseline; by label, where there is one.

    The pairs among the rows are corrected for their number, and so are those with each baseline.
    """
    among = {pair: difference(rows[pair[0]], rows[pair[1]]) for pair in combinations(rows, 2)}
    against: dict[str, dict[str, Difference]] = {row: {} for row in rows}
    for (first, second), made in _corrected(among).items():
        against[first][second] = made
        against[second][first] = made.reversed()
    for baseline, reached in baselines.items():
        differences = {
            (row, baseline): difference(mine, _for_all(reached, mine)) for row, mine in rows.items()
        }
        for (row, _), made in _corrected(differences).items():
            against[row][baseline] = made
    return against


def _corrected(pairs: Mapping[Pair, Difference | None]) -> dict[Pair, Difference]:
    return holm_corrected({pair: made for pair, made in pairs.items() if made is not None})


def _for_all(baseline: SeedScores, row: SeedScores) -> SeedScores:
    """A baseline that was found once knows no chance, and stands beside each of the row's seeds."""
    if len(baseline.seeds) > 1:
        return baseline
    (value,) = baseline.seeds.values()
    parts = {seed: part for part in baseline.parts.values() for seed in row.seeds}
    return replace(baseline, seeds=dict.fromkeys(row.seeds, value), parts=parts)
