"""A quantity for each example."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor
from torch.nn import functional as F

from subquad.fields import Batch, Readout
from subquad.objectives.objective import Loss
from subquad.objectives.supervised import Columns, Output, Supervised, Truth, require_fitting


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
        require_fitting(self)
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

    def answers(
        self, output: Float[np.ndarray, "n outputs"], valid: Bool[np.ndarray, "n *sides t"]
    ) -> Columns:
        return {"value": self.restored(output)}
