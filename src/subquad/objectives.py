"""What a model is asked for: its loss, its metric, and how a split is judged batch by batch.

An objective is frozen data, written beside a trained model. The trainer calls `loss` and `scorer` and knows
nothing else of a task, so that another kind of question is another class here.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from torch.nn import functional as F

from subquad.fields import Batch, Readout
from subquad.metrics import BALANCED, LABELS, contributions, higher_is_better, score

Output = Float[Tensor, "b outputs"]
Loss = Float[Tensor, ""]
Columns = dict[str, list[str] | np.ndarray]
Truth = Real[np.ndarray, " n"]  # class, or quantity in its own units


class Judged(NamedTuple):
    """A split's score."""

    scores: dict[str, float]  # by metric, and "loss", the mean
    contributions: Float[np.ndarray, " n"]  # of each example to the metric, in the order of the split


class Scorer(ABC):
    """Judges a split batch by batch, without keeping what the model gave out."""

    @property
    @abstractmethod
    def loss(self) -> float:
        """The mean so far."""

    @abstractmethod
    def add(self, output: Tensor, batch: Batch) -> None:
        """Judge a batch."""

    @abstractmethod
    def result(self) -> Judged:
        """Of all batches, which were every example of the split once."""


class Objective(ABC):
    """What a task asks of a model.

    `metric`: the name of the score by which models are chosen and compared.
    """

    kind: ClassVar[str]  # in records
    metric: str

    @property
    def higher_is_better(self) -> bool:
        return higher_is_better(self.metric)

    @property
    def metric_label(self) -> str:
        """What the metric is called in a sentence."""
        return LABELS.get(self.metric, self.metric)

    @property
    def balanced(self) -> bool:
        """Whether the metric weighs classes alike, however rare one is."""
        return self.metric in BALANCED

    @property
    @abstractmethod
    def readout(self) -> Readout:
        """What a model has to give out."""

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Loss:
        """The mean loss of a batch."""

    @abstractmethod
    def scorer(self) -> Scorer:
        """A judge of one split."""


class Supervised(Objective):
    """One answer an example."""

    metrics: ClassVar[tuple[str, ...]]  # that fit; the first is the default
    quantity: ClassVar[bool] = False  # whether answers are numbers, and not classes
    classes: tuple[str, ...]  # in the order of their numbers; none of a quantity

    @property
    @abstractmethod
    def chance(self) -> float | None:
        """The metric of guesses that know nothing; None where it has no bound."""

    @abstractmethod
    def encode(self, truth: Truth) -> Real[Tensor, " n"]:
        """`Batch.target` of some examples."""

    @abstractmethod
    def constant(self, truth: Truth, *, count: int) -> Float[np.ndarray, "..."]:
        """One answer for `count` examples, the best one for those of `truth`, as `choose` takes it."""

    @abstractmethod
    def certain(self, truth: Truth) -> Float[Tensor, "n outputs"]:
        """The outputs of a model that knows the answers."""

    @abstractmethod
    def answers(self, output: Float[np.ndarray, "n outputs"]) -> Columns:
        """A model's outputs in the target's own terms: columns, by name."""

    def restored(self, output: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, "..."]:
        """A model's outputs as `choose` takes them."""
        return output

    def decode(self, target: Real[np.ndarray, " n"]) -> Truth:
        """The truth behind `Batch.target`."""
        return target

    def choose(self, output: Float[np.ndarray, "..."]) -> Real[np.ndarray, " n"]:
        """What the metric judges of each example: a class, a score or a quantity."""
        return output

    def to_json(self) -> dict[str, Any]:
        """Its kind and options, of which it can be built anew."""
        return {"kind": self.kind, **vars(self)}

    def scorer(self) -> "ExampleScorer":
        return ExampleScorer(self)

    def judge(self, truth: Truth, chosen: Real[np.ndarray, " n"]) -> tuple[float, Float[np.ndarray, " n"]]:
        """The metric, and what each example adds to it."""
        return score(self.metric, truth, chosen), contributions(self.metric, truth, chosen)


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
        _fitting(self)
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

    def answers(self, output: Float[np.ndarray, "n outputs"]) -> Columns:
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
        _fitting(self)
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

    def answers(self, output: Float[np.ndarray, "n outputs"]) -> Columns:
        return _classes(self.classes, output)


@dataclass(frozen=True, kw_only=True)
class Regression(Supervised):
    """A quantity, which models give in deviations from the training mean; the loss is absolute.

    `metric`: "mae".
    `centre`, `scale`: mean and deviation of the training targets, in the target's own units.
    """

    kind: ClassVar = "regression"
    metrics: ClassVar = ("mae",)
    quantity: ClassVar = True
    classes: ClassVar = ()  # pyright: ignore[reportIncompatibleVariableOverride]

    metric: str = "mae"
    centre: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _fitting(self)
        if not self.scale > 0:
            raise ValueError(f"scale: should be above zero, not {self.scale!r}")

    @property
    def readout(self) -> Readout:
        return Readout(outputs=1)

    @property
    def chance(self) -> None:
        return None

    def loss(self, output: Output, batch: Batch) -> Loss:
        return F.l1_loss(output[:, 0], batch.target)

    def encode(self, truth: Truth) -> Float[Tensor, " n"]:
        return torch.from_numpy(((truth - self.centre) / self.scale).astype(np.float32))

    def decode(self, target: Real[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return target.astype(np.float64) * self.scale + self.centre

    def restored(self, output: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, " n"]:
        return self.decode(output[:, 0])

    def constant(self, truth: Truth, *, count: int) -> Float[np.ndarray, " count"]:
        return np.full(count, float(np.median(truth)))

    def certain(self, truth: Truth) -> Float[Tensor, "n outputs"]:
        return self.encode(truth)[:, None]

    def answers(self, output: Float[np.ndarray, "n outputs"]) -> Columns:
        return {"value": self.restored(output)}


OBJECTIVES: dict[str, type[BinaryClassification] | type[Classification] | type[Regression]] = {
    each.kind: each for each in (BinaryClassification, Classification, Regression)
}


class ExampleScorer(Scorer):
    """Keeps of each example what the metric judges: one number and its truth."""

    def __init__(self, objective: Supervised) -> None:
        self.objective = objective
        self.total = 0.0
        self.count = 0
        self.truth: list[np.ndarray] = []
        self.chosen: list[np.ndarray] = []
        self.example: list[np.ndarray] = []

    @property
    def loss(self) -> float:
        return self.total / self.count

    def add(self, output: Output, batch: Batch) -> None:
        """Raises `FloatingPointError` where an output is not finite and the loss nevertheless is."""
        loss = self.objective.loss(output, batch).item()
        self.total += loss * len(batch.target)
        self.count += len(batch.target)
        if np.isfinite(loss) and not output.isfinite().all():
            raise FloatingPointError(f"{int((~output.isfinite()).sum())} outputs are not finite")
        self.chosen.append(self.objective.choose(self.objective.restored(output.cpu().numpy())))
        self.truth.append(self.objective.decode(batch.target.cpu().numpy()))
        self.example.append(batch.example.cpu().numpy())

    def result(self) -> Judged:
        truth, chosen, example = map(np.concatenate, (self.truth, self.chosen, self.example))
        value, parts = self.objective.judge(truth, chosen)
        ordered = np.empty_like(parts)
        ordered[example] = parts
        return Judged({self.objective.metric: value, "loss": self.loss}, ordered)


def _fitting(objective: Supervised) -> None:
    if objective.metric not in objective.metrics:
        fitting = " or ".join(map(repr, objective.metrics))
        raise ValueError(f"metric: should be {fitting}, not {objective.metric!r}")


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
