"""Every byte of a text is asked for: from those before it, or from those around it.

A split's score is the sum of the bits that a model needs for what is asked, over how many bytes that are. It
is that of an arithmetic coder with the model's probabilities, and stands beside the compressed size of the
same bytes. Of long windows and short ones the long ones weigh more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.fields import IGNORED, Batch, Readout
from subquad.objectives.objective import Judged, Loss, Objective, Part, Scorer

BYTES = 256
FIRST_RANGE = 256  # positions; each range after the second is as long as all before it
RANGES = 64  # more than there are

Logits = Float[Tensor, "b t 256"]


class LanguageModelling(Objective):
    """A probability for each byte value at each token; `Batch.target` is `IGNORED` where nothing is asked."""

    @property
    def readout(self) -> Readout:
        return Readout(outputs=BYTES, per="token")

    @property
    def chance(self) -> float:
        return math.log2(BYTES)

    def loss(self, output: Logits, batch: Batch) -> Loss:
        """In nats; nan where nothing is asked."""
        return F.cross_entropy(output.flatten(0, 1), batch.target.flatten(), ignore_index=IGNORED)

    def scorer(self) -> "ByteScorer":
        return ByteScorer(self.metric)

    def synthetic(self, *, size: int, length: int) -> Int[Tensor, "b t"]:
        return torch.zeros(size, length, dtype=torch.int64)


@dataclass(frozen=True)
class NextToken(LanguageModelling):
    """The byte at each token, of which the inputs hold those before it alone."""

    kind: ClassVar = "next"
    causal: ClassVar = True
    metric: ClassVar = "bits_per_byte"  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class MaskedToken(LanguageModelling):
    """The byte at each masked token, from the others."""

    kind: ClassVar = "masked"
    metric: ClassVar = "bits_per_masked_byte"  # pyright: ignore[reportIncompatibleVariableOverride]


class ByteScorer(Scorer):
    """Keeps of each example how many bits were needed for how many bytes, and the same by position."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # example, bits, bytes
        self.by_position = {
            "position in the document": np.zeros((2, RANGES)),  # bits, bytes
            "position in the window": np.zeros((2, RANGES)),
        }

    @property
    def loss(self) -> float:
        bits, count = self.totals()
        return float(bits.sum() / count.sum() * math.log(2))

    def add(self, output: Logits, batch: Batch) -> None:
        nats = F.cross_entropy(
            output.flatten(0, 1), batch.target.flatten(), ignore_index=IGNORED, reduction="none"
        )
        self.add_bits(nats.view_as(batch.target).double().cpu().numpy() / math.log(2), batch)

    def add_bits(self, bits: Float[np.ndarray, "b t"], batch: Batch) -> None:
        """The bits that each token needs, of which those count that are asked for."""
        asked = (batch.target != IGNORED).cpu().numpy()
        bits = np.where(asked, bits, 0.0)
        example = batch.example.cpu().numpy()
        real = example >= 0
        self.parts.append((example[real], bits[real].sum(1), asked[real].sum(1)))
        position = np.broadcast_to(np.arange(asked.shape[1]), asked.shape)
        offset = 0 if batch.offset is None else batch.offset.cpu().numpy()[:, None]
        for sums, where in zip(self.by_position.values(), (position + offset, position), strict=True):
            place = range_of(where)[asked]
            sums += [
                np.bincount(place, bits[asked], minlength=RANGES),
                np.bincount(place, minlength=RANGES),
            ]

    def totals(self) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Bits and bytes of each example, in the order of the split."""
        example, bits, count = map(np.concatenate, zip(*self.parts, strict=True))
        order = example.argsort()
        return bits[order], count[order]

    def result(self) -> Judged:
        """The score is a ratio of two means, and an example adds the linear term of the bits and bytes that
        it has (the delta method), around the value.
        """
        bits, count = self.totals()
        value = float(bits.sum() / count.sum())
        return Judged(
            {self.metric: value, "loss": value * math.log(2)},
            contributions=value + (bits - value * count) / count.mean(),
            breakdown={title: parts_of(sums) for title, sums in self.by_position.items()},
        )


def range_of(position: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """0 for positions below 256, 1 up to 511, 2 up to 1,023 and so on."""
    return np.frexp(position // FIRST_RANGE)[1]


def parts_of(sums: Float[np.ndarray, "2 ranges"]) -> Mapping[str, Part]:
    bits, count = sums
    bounds = [0, *(FIRST_RANGE << place for place in range(RANGES))]
    return {
        f"{bounds[place]:,} to {bounds[place + 1] - 1:,}": Part(
            float(bits[place] / count[place]), int(count[place])
        )
        for place in np.flatnonzero(count).tolist()
    }
