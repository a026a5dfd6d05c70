"""What a model is asked for: its loss, its metric, and how a split is judged batch by batch.

An objective is frozen data, written beside a trained model. The trainer calls `loss` and `scorer` and knows
nothing else of a task, so that another kind of question is another class here.
"""

from subquad.objectives.classification import BinaryClassification, Classification, probabilities
from subquad.objectives.language import BYTES, MaskedToken, NextToken
from subquad.objectives.objective import Breakdown, Judged, Kinds, Objective, Part, Scorer
from subquad.objectives.regression import Regression
from subquad.objectives.supervised import Supervised
from subquad.objectives.tokens import TokenClassification

__all__ = [
    "BYTES",
    "OBJECTIVES",
    "BinaryClassification",
    "Breakdown",
    "Classification",
    "Judged",
    "Kinds",
    "MaskedToken",
    "NextToken",
    "Objective",
    "Part",
    "Regression",
    "Scorer",
    "Supervised",
    "TokenClassification",
    "probabilities",
]

OBJECTIVES: dict[
    str, type[BinaryClassification] | type[Classification] | type[Regression] | type[TokenClassification]
] = {each.kind: each for each in (BinaryClassification, Classification, Regression, TokenClassification)}
