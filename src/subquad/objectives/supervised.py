"""Objectives with a known answer for each example."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Real
from torch import Tensor

from subquad.fields import IGNORED, Batch
from subquad.metrics import contributions, defined, score
from subquad.objectives.objective import Breakdown, Judged, Kinds, Objective, Part, Scorer

Output = Float[Tensor, "b outputs"]
Columns = dict[str, list[str] | list[list[str]] | np.ndarray]
Truth = Real[np.ndarray, "n ..."]  # a class, or a quantity in its own units, for each question


class Supervised(Objective):
    """Answers that are known: one an example, unless the kind says otherwise."""

    metrics: ClassVar[tuple[str, ...]]  # that fit; the first is the default
    quantity: ClassVar[bool] = False  # whether answers are numbers, and not classes
    classes: tuple[str, ...]  # in the order of their numbers; none of a quantity

    @abstractmethod
    def encode(self, truth: Truth) -> Real[Tensor, "n ..."]:
        """`Batch.target` of some examples."""

    @abstractmethod
    def constant(self, truth: Truth, *, count: int) -> Float[np.ndarray, "..."]:
        """One answer for `count` examples, the best one for those of `truth`, as `choose` takes it."""

    @abstractmethod
    def certain(self, truth: Truth) -> Float[Tensor, "n *t outputs"]:
        """The outputs of a model that knows the answers."""

    @abstractmethod
    def answers(
        self, output: Float[np.ndarray, "n *t outputs"], valid: Bool[np.ndarray, "n *sides t"]
    ) -> Columns:
        """A model's outputs in the target's own terms: columns, by name. `valid`: where tokens are real."""

    def asked(self, each: Tensor, target: Tensor) -> Tensor:
        """Of outputs or targets, those that `Batch.target` asks for."""
        return each

    def synthetic(self, *, size: int, length: int) -> Tensor:
        return self.encode(np.zeros(size))

    def restored(self, output: Float[np.ndarray, "n *t outputs"]) -> Float[np.ndarray, "..."]:
        """A model's outputs as `choose` takes them."""
        return output

    def decode(self, target: Real[np.ndarray, "n ..."]) -> Truth:
        """The truth behind `Batch.target`."""
        return target

    def choose(self, output: Real[np.ndarray, "..."]) -> Real[np.ndarray, "n ..."]:
        """What the metric judges of each example: a class, a score or a quantity."""
        return output

    def scorer(self) -> "ExampleScorer":
        return ExampleScorer(self)

    def judge(self, truth: Truth, chosen: Real[np.ndarray, "n ..."]) -> tuple[float, Float[np.ndarray, " n"]]:
        """The metric, and what each example adds to it."""
        return score(self.metric, truth, chosen), contributions(self.metric, truth, chosen)

    def breakdown(
        self, truth: Truth, chosen: Real[np.ndarray, "n ..."], kinds: Mapping[str, Kinds]
    ) -> Breakdown:
        """The metric over the answers of each kind, of which there are some."""
        return {
            title: {
                name: self._part(truth[here], chosen[here])
                for place, name in enumerate(names)
                if (here := of == place).any()
            }
            for title, (names, of) in kinds.items()
        }

    def _part(self, truth: Real[np.ndarray, " n"], chosen: Real[np.ndarray, " n"]) -> Part:
        value = score(self.metric, truth, chosen) if defined(self.metric, truth) else None
        return Part(value, len(truth))


class ExampleScorer(Scorer):
    """Keeps of each example what the metric judges, a number for each question, and the truth."""

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

    def add(self, output: Tensor, batch: Batch) -> None:
        """Raises `FloatingPointError` where an output is not finite and the loss nevertheless is."""
        loss = self.objective.loss(output, batch).item()
        output, target = (self.objective.asked(x, batch.target) for x in (output, batch.target))
        self.total += loss * len(batch.target)
        self.count += len(batch.target)
        if np.isfinite(loss) and not output.isfinite().all():
            raise FloatingPointError(f"{int((~output.isfinite()).sum())} outputs are not finite")
        self.chosen.append(self.objective.choose(self.objective.restored(output.cpu().numpy())))
        self.truth.append(self.objective.decode(target.cpu().numpy()))
        self.example.append(batch.example.cpu().numpy())

    def result(self) -> Judged:
        truth, chosen = self.ordered()
        value, parts = self.objective.judge(truth, chosen)
        return Judged({self.objective.metric: value, "loss": self.loss}, parts, breakdown={})

    def breakdown(self, kinds: Mapping[str, Kinds]) -> Breakdown:
        return self.objective.breakdown(*self.ordered(), kinds)

    def ordered(self) -> tuple[Truth, Real[np.ndarray, "n ..."]]:
        """Truth and choice of each example, in the order of the split."""
        truth, chosen, example = map(stacked, (self.truth, self.chosen, self.example))
        order = example.argsort()
        return truth[order], chosen[order]


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One behind the other; rows of fewer questions than others have are filled up with `IGNORED`."""
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=IGNORED) for part in parts]
    )


def require_fitting(objective: Supervised) -> None:
    if objective.metric not in objective.metrics:
        fitting = " or ".join(map(repr, objective.metrics))
        raise ValueError(f"metric: should be {fitting}, not {objective.metric!r}")
