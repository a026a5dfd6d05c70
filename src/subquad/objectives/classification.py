"""One of several classes for each example."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from torch.nn import functional as F

from subquad.fields import Batch, Readout
from subquad.objectives.objective import Loss
from subquad.objectives.supervised import Columns, Output, Supervised, Truth, require_fitting


@dataclass(frozen=True, kw_only=True)
class BinaryClassification(Supervised):
    """One logit: that of the second of two classes.

    `classes`: their names; the second is the positive one.
    `metric`: "auc", "accuracy" or "macro_f1".
    """

    kind: ClassVar = "binary"
    metrics: ClassVar = ("auc", "accuracy", "macro_f1")

    classes: tuple[str, ...]
    metric: str = "auc"

    def __post_init__(self) -> None:
        require_fitting(self)
        if len(self.classes) != 2:
            raise ValueError(f"classes: should be two, not {list(self.classes)}")

    @property
    def readout(self) -> Readout:
        return Readout(outputs=1)

    @property
    def chance(self) -> float:
        return 0.5

    def loss(self, output: Output, batch: Batch) -> Loss:
        return F.binary_cross_entropy_with_logits(output[:, 0], batch.target)

    def encode(self, truth: Truth) -> Float[Tensor, " n"]:
        return torch.from_numpy(truth.astype(np.float32))

    def restored(self, output: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, " n"]:
        return output[:, 0]

    def choose(self, output: Float[np.ndarray, " n"]) -> Real[np.ndarray, " n"]:
        return output if self.metric == "auc" else (output > 0).astype(np.int64)

    def constant(self, truth: Truth, *, count: int) -> Float[np.ndarray, " count"]:
        return np.full(count, truth.mean() - 0.5)

    def certain(self, truth: Truth) -> Float[Tensor, "n outputs"]:
        return self.encode(2 * truth - 1)[:, None]

    def answers(
        self, output: Float[np.ndarray, "n outputs"], valid: Bool[np.ndarray, "n *sides t"]
    ) -> Columns:
        return _classes(self.classes, np.concatenate([np.zeros_like(output), output], 1))


@dataclass(frozen=True, kw_only=True)
class Classification(Supervised):
    """A logit for each class.

    `classes`: their names, in the order of their numbers.
    `metric`: "accuracy" or "macro_f1".
    """

    kind: ClassVar = "multiclass"
    metrics: ClassVar = ("accuracy", "macro_f1")

    classes: tuple[str, ...]
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        require_fitting(self)
        if len(self.classes) < 2:
            raise ValueError(f"classes: should be two at least, not {list(self.classes)}")

    @property
    def readout(self) -> Readout:
        return Readout(outputs=len(self.classes))

    @property
    def chance(self) -> float:
        return 1 / len(self.classes) if self.metric == "accuracy" else 0.0

    def loss(self, output: Output, batch: Batch) -> Loss:
        return F.cross_entropy(output, batch.target)

    def encode(self, truth: Truth) -> Int[Tensor, " n"]:
        return torch.from_numpy(truth.astype(np.int64))

    def choose(self, output: Float[np.ndarray, "..."]) -> Int[np.ndarray, " n"]:
        """Of two classes a single score will do, above zero that of the second."""
        return output.argmax(1) if output.ndim == 2 else (output > 0).astype(np.int64)

    def constant(self, truth: Truth, *, count: int) -> Float[np.ndarray, "count k"]:
        return np.tile(np.bincount(truth, minlength=len(self.classes)).astype(np.float64), (count, 1))

    def certain(self, truth: Truth) -> Float[Tensor, "n outputs"]:
        return F.one_hot(self.encode(truth), len(self.classes)).float()

    def answers(
        self, output: Float[np.ndarray, "n outputs"], valid: Bool[np.ndarray, "n *sides t"]
    ) -> Columns:
        return _classes(self.classes, output)


def _classes(names: Sequence[str], logits: Float[np.ndarray, "n classes"]) -> Columns:
    """The most probable class, and the probability of each."""
    chances = probabilities(logits)
    return {
        "class": [names[int(place)] for place in chances.argmax(1)],
        **{f"probability of {name}": chances[:, place] for place, name in enumerate(names)},
    }


def probabilities(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """Softmax, in float64."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
