"""What is asked of each history: the kind of answer, how it is judged, and how outputs are read."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Real

from subquad.tasks.metrics import contributions, score


@dataclass(frozen=True, kw_only=True)
class Target:
    """The question of a task.

    A model gives `outputs` numbers a history: the logit of the second of two `classes` (binary), one
    logit a class (multiclass), or the quantity in deviations from the training mean (regression).
    """

    name: str
    kind: str  # "binary" | "multiclass" | "regression"
    metric: str
    classes: tuple[str, ...] = ()  # in the order of their numbers; none for regression
    centre: float = 0.0  # regression: mean and deviation of the training targets
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        return len(self.classes) if self.kind == "multiclass" else 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> "Target":
        return cls(**{**written, "classes": tuple(written["classes"])})

    def restored(
        self, output: Float[np.ndarray, "n k"]
    ) -> Float[np.ndarray, " n"] | Float[np.ndarray, "n k"]:
        """A model's outputs as `metrics.score` takes them: regression back in its own units."""
        if self.kind == "multiclass":
            return output
        if self.kind == "binary":
            return output[:, 0]
        return output[:, 0].astype(np.float64) * self.scale + self.centre

    def score(self, truth: Real[np.ndarray, " n"], output: Float[np.ndarray, "n k"]) -> float:
        """The metric of a model's outputs against `Batch.target`, both as they left batches and model."""
        return score(self.metric, self._truth(truth), self.restored(output))

    def contributions(
        self, truth: Real[np.ndarray, " n"], output: Float[np.ndarray, "n k"]
    ) -> Float[np.ndarray, " n"]:
        """What each example adds to `score`, which is the mean: see `metrics.contributions`."""
        return contributions(self.metric, self._truth(truth), self.restored(output))

    def _truth(self, truth: Real[np.ndarray, " n"]) -> Real[np.ndarray, " n"]:
        return truth.astype(np.float64) * self.scale + self.centre if self.kind == "regression" else truth

    def probabilities(self, output: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n classes"]:
        """The probability of each class, from a model's logits. Raises `ValueError` for regression."""
        if self.kind == "regression":
            raise ValueError("a regression target has no classes; use `restored`")
        logits = output.astype(np.float64)
        if self.kind == "binary":
            logits = np.concatenate([np.zeros_like(logits), logits], 1)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)
