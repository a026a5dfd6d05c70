"""Histories of events with a question about each: the data of a run, in padded batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from subquad.tasks.encoding import Encoding, Histories, Inputs
from subquad.tasks.target import Target

__all__ = ["Batch", "Encoding", "EventData", "Examples", "Histories", "Inputs", "Split", "Target"]

Split = Literal["train", "validation", "test"]
POOL = 32  # batches whose histories are sorted by length together


class Batch(NamedTuple):
    """Padded histories with what is asked of them; padding stands last and is 0.

    The target is what outputs are compared with: 0 or 1 (binary), a class (multiclass), or the quantity
    in deviations from the training mean (regression).
    """

    categorical: Int[Tensor, "b t c"]
    numeric: Float[Tensor, "b t n"]
    valid: Bool[Tensor, "b t"]
    target: Real[Tensor, " b"]  # int64 classes; float32 for binary and regression
    example: Int[Tensor, " b"]  # places in the split


@dataclass(frozen=True)
class Examples:
    """Which events each example has seen, when it is asked, and the answer."""

    entity: Int[np.ndarray, " n"]  # place in Histories.entities
    start: Int[np.ndarray, " n"]  # its events are start .. stop - 1
    stop: Int[np.ndarray, " n"]
    until: Float[np.ndarray, " n"]  # the end of the history, which ages count from
    target: Real[np.ndarray, " n"]  # class, or quantity in its own units

    def __len__(self) -> int:
        return len(self.target)

    def judged(self, contribution: Float[np.ndarray, " n"]) -> dict[str, list[float] | list[int]]:
        """As JSON: what each example adds to a metric, to seven digits, and the number of its entity."""
        return {
            "contribution": [float(f"{part:.7g}") for part in contribution],
            "group": np.unique(self.entity, return_inverse=True)[1].tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class EventData:
    """A task's events, examples in three splits, and how both become numbers."""

    histories: Histories
    train: Examples
    validation: Examples
    test: Examples
    encoding: Encoding
    target: Target
    fingerprint: str  # changes when the data, or what is asked of them, change
    summary: Mapping[str, Any]  # what a reader should know of the data, as JSON

    @property
    def kind(self) -> str:
        return self.target.kind

    @property
    def metric(self) -> str:
        return self.target.metric

    @property
    def outputs(self) -> int:
        return self.target.outputs

    @property
    def longest(self) -> int:
        """Events of the longest history: the length that keeps every history whole."""
        return max(int((part.stop - part.start).max()) for part in (self.train, self.validation, self.test))

    def examples(self, split: Split) -> Examples:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def batches(
        self, split: Split, *, size: int, length: int, seed: int, epoch: int, shuffle: bool
    ) -> Iterator[Batch]:
        """Every example of a split once, `size` at a time, the last `length` events of each.

        Histories of similar length stand together, so that little is padding: shuffled, in pools of 32
        batches drawn at random, whose batches come in random order; else by length throughout. The order
        depends on `seed` and `epoch` alone. One batch may be smaller than the others.
        """
        examples = self.examples(split)
        lengths = np.minimum(examples.stop - examples.start, length)
        for chosen in _order(lengths, size=size, seed=seed, epoch=epoch, shuffle=shuffle):
            inputs = self.encoding.inputs(
                self.histories,
                examples.start[chosen],
                examples.stop[chosen],
                examples.until[chosen],
                length=length,
            )
            target = self._target(examples.target[chosen])
            yield Batch(*inputs, target=target, example=torch.from_numpy(chosen))

    def _target(self, raw: Real[np.ndarray, " b"]) -> Real[Tensor, " b"]:
        if self.kind == "multiclass":
            return torch.from_numpy(raw.astype(np.int64))
        return torch.from_numpy(((raw - self.target.centre) / self.target.scale).astype(np.float32))


def _order(
    lengths: Int[np.ndarray, " n"], *, size: int, seed: int, epoch: int, shuffle: bool
) -> list[Int[np.ndarray, " b"]]:
    """The examples of each batch."""
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size!r}")
    if not shuffle:
        order = np.argsort(lengths, kind="stable")
        return [order[first : first + size] for first in range(0, len(order), size)]
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batches = []
    for first in range(0, len(order), size * POOL):
        pool = order[first : first + size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[place : place + size] for place in range(0, len(pool), size)]
    return [batches[place] for place in generator.permutation(len(batches))]
