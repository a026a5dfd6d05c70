"""The contract of an objective, and of what judges a split batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from subquad.fields import Batch, Readout
from subquad.metrics import BALANCED, LABELS, higher_is_better

Loss = Float[Tensor, ""]


class Kinds(NamedTuple):
    """Of what kind each answer of a split is, in one respect."""

    names: tuple[str, ...]  # in the order in which people read them
    of: Int[np.ndarray, "n ..."]  # the place of its name, shaped like the answers


class Part(NamedTuple):
    """The metric over some of what was asked."""

    value: float | None  # None: these have none, as one class alone has no AUC
    count: int  # of what it is a score of: examples, or tokens


Breakdown = Mapping[str, Mapping[str, Part]]  # by what parts differ in ("position"), by the part ("0 to 255")


class Judged(NamedTuple):
    """A split's score."""

    scores: dict[str, float]  # by metric, and "loss", the mean
    contributions: Float[np.ndarray, " n"]  # of each example to the metric, in the order of the split
    breakdown: Breakdown  # parts in the order in which people read them


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

    def breakdown(self, kinds: Mapping[str, Kinds]) -> Breakdown:
        """The metric by the kinds of answers that a dataset names; nothing where an objective has none."""
        return {}


class Objective(ABC):
    """What a task asks of a model.

    `metric`: the name of the score by which models are chosen and compared.
    """

    kind: ClassVar[str]  # in records
    causal: ClassVar[bool] = False  # whether a token may see those before it alone
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
    def chance(self) -> float | None:
        """The metric of guesses that know nothing; None where it has no bound."""

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

    @abstractmethod
    def synthetic(self, *, size: int, length: int) -> Tensor:
        """`Batch.target` for random inputs."""

    def to_json(self) -> dict[str, Any]:
        """Its kind and options, of which it can be built anew."""
        return {"kind": self.kind, **vars(self)}
