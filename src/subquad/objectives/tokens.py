"""A class at each token that a sequence asks about."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from torch.nn import functional as F

from subquad.fields import IGNORED, Batch, Readout
from subquad.objectives.objective import Loss
from subquad.objectives.supervised import Columns, Supervised, require_fitting


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Supervised):
    """A class at some tokens of a sequence; targets elsewhere are `IGNORED`.

    Truth and choice have a row for each example and a column for each of its questions; where others have
    more, its row is filled up with `IGNORED`. Every question counts alike.

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
        where = target != IGNORED
        count = where.sum(1)
        first = torch.arange(int(count.max()), device=target.device) < count[:, None]
        questions = at_tokens.new_full((*first.shape, *at_tokens.shape[2:]), IGNORED)
        questions[first] = at_tokens[where]
        return questions

    def synthetic(self, *, size: int, length: int) -> Int[Tensor, "b t"]:
        return torch.zeros(size, length, dtype=torch.int64)

    def constant(self, truth: Int[np.ndarray, "n q"], *, count: int) -> Int[np.ndarray, "count q"]:
        return np.full((count, truth.shape[1]), np.bincount(truth[truth != IGNORED]).argmax())

    def choose(self, output: Real[np.ndarray, "n q ..."]) -> Int[np.ndarray, "n q"]:
        """Of logits the most probable class; a baseline may name classes."""
        return output.argmax(-1) if output.ndim == 3 else output

    def certain(self, truth: Int[np.ndarray, "n t"]) -> Float[Tensor, "n t outputs"]:
        """`truth` at every token, `IGNORED` where nothing is asked."""
        return F.one_hot(self.encode(truth).clamp(min=0), len(self.classes)).float()

    def answers(self, output: Float[np.ndarray, "n t outputs"], valid: Bool[np.ndarray, "n t"]) -> Columns:
        """The most probable class at each real token, a list for each sequence."""
        chosen = zip(output.argmax(-1), valid, strict=True)
        return {"classes": [[self.classes[place] for place in row[real]] for row, real in chosen]}

    def judge(
        self, truth: Int[np.ndarray, "n q"], chosen: Int[np.ndarray, "n q"]
    ) -> tuple[float, Float[np.ndarray, " n"]]:
        where = truth != IGNORED
        parts = ((truth == chosen) & where).sum(1) / where.sum(1).mean()
        return float(parts.mean()), parts
