"""What goes into a model and what comes out of it: fields, readouts and batches.

Both are plain frozen data, JSON through and through; `subquad.nn.model` builds the modules that they stand
for.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Inputs = tuple[Tensor, ...]

IGNORED = -100  # in targets by token: nothing is asked there


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One symbol a token: inputs are `(ids,)`, of shape (b, t).

    `vocabulary`: symbols; ids are below it. Padding is none of them: `Batch.valid` says where it is.
    """

    vocabulary: int

    def __post_init__(self) -> None:
        if self.vocabulary < 1:
            raise ValueError(f"vocabulary must be at least 1, not {self.vocabulary!r}")

    def sample(self, *, size: int, length: int, generator: torch.Generator) -> Inputs:
        """Random inputs without padding."""
        return (torch.randint(self.vocabulary, (size, length), generator=generator),)


@dataclass(frozen=True, kw_only=True)
class Events:
    """Several columns a token: inputs are `(categorical, numeric)`, of shapes (b, t, c) and (b, t, n).

    `vocabularies`: ids of each categorical column, from 0 (rare or unseen) up.
    `numeric`: columns of numbers.
    """

    vocabularies: tuple[int, ...]
    numeric: int

    def __post_init__(self) -> None:
        if not self.vocabularies and not self.numeric:
            raise ValueError("events have no column: give at least one categorical or numeric")
        if min((self.numeric + 1, *self.vocabularies)) < 1:
            raise ValueError(f"vocabularies must be at least 1 and numeric at least 0, not {self!r}")

    def sample(self, *, size: int, length: int, generator: torch.Generator) -> Inputs:
        """Random inputs without padding."""
        ids = [torch.randint(known, (size, length), generator=generator) for known in self.vocabularies]
        categorical = torch.stack(ids, -1) if ids else torch.zeros(size, length, 0, dtype=torch.int64)
        return categorical, torch.randn(size, length, self.numeric, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two sequences of the same kind: inputs are those of `side`, of shapes (b, 2, t, ...).

    `side`: what each of the two holds. Both are padded to one length, that of the longest in the batch, and
    `Batch.valid`, (b, 2, t), says where each ends.
    """

    side: Tokens | Events

    def sample(self, *, size: int, length: int, generator: torch.Generator) -> Inputs:
        """Random inputs without padding."""
        sides = self.side.sample(size=2 * size, length=length, generator=generator)
        return tuple(part.unflatten(0, (size, 2)) for part in sides)


Fields = Tokens | Events | Pair


def token_fields(fields: Fields) -> Tokens | Events:
    """What a token holds, of a sequence or of either side of a pair."""
    return fields.side if isinstance(fields, Pair) else fields


@dataclass(frozen=True, kw_only=True)
class Readout:
    """What a norm and a linear layer make of an encoder's tokens.

    `outputs`: numbers of a vector.
    `per`: "sequence", one vector of the mean of the real tokens (of a pair, one of both means), or "token",
        one of each.
    """

    outputs: int
    per: Literal["sequence", "token"] = "sequence"

    def __post_init__(self) -> None:
        if self.outputs < 1:
            raise ValueError(f"outputs must be at least 1, not {self.outputs!r}")


class Batch(NamedTuple):
    """Some examples of a split, padded to one length."""

    inputs: Inputs  # as the dataset's fields say, batch first
    valid: Bool[Tensor, "b *sides t"]  # False at padding; a pair has two sides
    target: Tensor  # as the dataset's objective says, batch first
    example: Int[Tensor, " b"]  # places in the split; -1: a row of padding alone
    offset: Int[Tensor, " b"] | None = None  # tokens of its document before it; None: it is whole
    begins: Bool[Tensor, " b"] | None = None  # rows that are new streams; None: no stream, or none is new
