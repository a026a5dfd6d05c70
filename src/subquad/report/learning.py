"""How each training went: loss and validation score over the examples seen."""

from collections.abc import Sequence
from dataclasses import dataclass

from subquad.records import Record
from subquad.report.question import Question, identity


@dataclass(frozen=True, kw_only=True)
class LearningPoint:
    """`loss`: the mean since the point before; `validation`: the metric, None where it was not measured."""

    step: int
    examples: int
    loss: float
    validation: float | None


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """The training of one seed."""

    seed: int
    points: tuple[LearningPoint, ...]


def learning_curves(question: Question, records: Sequence[Record]) -> dict[str, list[LearningCurve]]:
    """Those of the fits that went well, by the label of their row, in the order asked."""
    curves: dict[str, list[LearningCurve]] = {}
    for entry in question.entries:
        for record in records:
            if record["kind"] != "fit" or identity(record["spec"]["mechanism"]) != entry.identity:
                continue
            if points := record["result"].get("curve"):
                curve = LearningCurve(
                    seed=record["spec"]["seed"],
                    points=tuple(
                        LearningPoint(
                            step=point["step"],
                            examples=point["examples"],
                            loss=point["loss"],
                            validation=point.get("validation", {}).get(question.metric.name),
                        )
                        for point in points
                    ),
                )
                curves.setdefault(entry.label, []).append(curve)
    return curves
