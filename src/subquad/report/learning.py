"""How each training went: loss and validation score over the examples seen."""

from collections.abc import Sequence
from dataclasses import dataclass

from subquad.records import Record
from subquad.report.question import Question
from subquad.report.runs import fits_of


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

    @property
    def validated(self) -> dict[int, float]:
        """The metric on validation, by the examples seen."""
        return {point.examples: point.validation for point in self.points if point.validation is not None}


def learning_curves(question: Question, records: Sequence[Record]) -> dict[str, list[LearningCurve]]:
    """Those of the fits that went well, by the label of their row, in the order asked."""
    curves: dict[str, list[LearningCurve]] = {}
    for entry in question.entries:
        for record in fits_of(entry, records):
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
