"""A class at each token that a sequence asks about."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from torch.nn import functional as F

from subquad.fields import IGNORED, Batch, Readout
from subquad.objectives.objective import Loss
from subquad.objectives.supervised import Columns, Supervised, require_fitting


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Supervised):
    """A class at some tokens of a sequence, equally many in each; targets elsewhere are `IGNORED`.

    Truth and choice have a row for each example and a column for each of its questions. An example counts by
    the share of its questions that are answered right.

    `classes`: their names, in the order of their numbers.
    `metric`: "accuracy".
    """

    kind: ClassVar = "tokens"
    metrics: ClassVar = ("accuracy",)

    classes: tuple[str, ...]
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        require_fitting(self)
        if len(self.classes) < 2:
            raise ValueError(f"classes: should be two at least, not {list(self.classes)}")

    @property
    def readout(self) -> Readout:
        return Readout(outputs=len(self.classes), per="token")

    @property
    def chance(self) -> float:
        return 1 / len(self.classes)

    def loss(self, output: Float[Tensor, "b t outputs"], batch: Batch) -> Loss:
        return F.cross_entropy(output.flatten(0, 1), batch.target.flatten(), ignore_index=IGNORED)

    def encode(self, truth: Int[np.ndarray, "n q"]) -> Int[Tensor, "n q"]:
        return torch.from_numpy(truth.astype(np.int64))

    def asked(self, at_tokens: Tensor, target: Int[Tensor, "b t"]) -> Tensor:
        return at_tokens[target != IGNORED].unflatten(0, (len(target), -1))

    def synthetic(self, *, size: int, length: int) -> Int[Tensor, "b t"]:
        return torch.zeros(size, length, dtype=torch.int64)

    def constant(self, truth: Int[np.ndarray, "n q"], *, count: int) -> Int[np.ndarray, "count q"]:
        return np.full((count, truth.shape[1]), np.bincount(truth.ravel()).argmax())

    def choose(self, output: Real[np.ndarray, "n q ..."]) -> Int[np.ndarray, "n q"]:
        """Of logits the most probable class; a baseline may name classes."""
        return output.argmax(-1) if output.ndim == 3 else output

    def certain(self, truth: Int[np.ndarray, "n t"]) -> Float[Tensor, "n t outputs"]:
        """`truth` at every token, `IGNORED` where nothing is asked."""
        return F.one_hot(self.encode(truth).clamp(min=0), len(self.classes)).float()

    def answers(self, output: Float[np.ndarray, "n t outputs"]) -> Columns:
        """The most probable class at each token, one after the other."""
        return {"classes": [" ".join(self.classes[place] for place in row) for row in output.argmax(-1)]}

    def judge(
        self, truth: Int[np.ndarray, "n q"], chosen: Int[np.ndarray, "n q"]
    ) -> tuple[float, Float[np.ndarray, " n"]]:
        parts = (truth == chosen).mean(1)
        return float(parts.mean()), parts
