"""Options that users set, each written once: its name, type, bound, default and help.

    steps: Annotated[Count, Help("Steps of the optimiser.")] = 200

The checks, the command line, the specs of runs and the report read them from there. No torch: they are what
`subquad compare --help` shows.
"""

from dataclasses import dataclass, fields
from typing import Annotated

from subquad.bounds import (
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    ShareAboveZero,
    ShareBelowOne,
    require,
)


@dataclass(frozen=True)
class Help:
    """What the help of the command line says of an option."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options that are held against their types and bounds when they are set."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for the first option that is not what it must be."""
        for each in fields(self):
            require(each.name, getattr(self, each.name), each.type)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The skeleton of a model, whatever its mechanism.

    Dropout is of what is put into the first block, and of what each part of a block adds.
    """

    dim: Annotated[Count, Help("Width of the model.")] = 64
    depth: Annotated[Count, Help("Blocks of the model.")] = 2
    heads: Annotated[Count, Help("Heads of each block; they share the width.")] = 4
    mlp_ratio: Annotated[Positive, Help("Hidden width of each token's network, as a multiple of dim.")] = 4.0
    positions: Annotated[str, Help("none, learnt, sinusoidal or rotary.")] = "sinusoidal"
    dropout: Annotated[ShareBelowOne, Help("Share of numbers that training drops.")] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, and {self.dim} is none of {self.heads}")

    @property
    def head_dim(self) -> int:
        """The width of each head."""
        return self.dim // self.heads


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How the next token follows from a model's logits.

    Those of tokens that were there are penalised, all are divided by the temperature, the likeliest `top_k`
    are kept, of these the likeliest that together have the probability `top_p`, and one of them is drawn.
    """

    temperature: Annotated[
        PositiveOrZero, Help("Below 1 the likely becomes likelier; 0 takes the likeliest token always.")
    ] = 1.0
    top_k: Annotated[CountOrZero, Help("So many of the likeliest tokens are drawn from; 0: all.")] = 0
    top_p: Annotated[
        ShareAboveZero, Help("The likeliest tokens that together have this probability are drawn from.")
    ] = 1.0
    repetition_penalty: Annotated[
        Positive, Help("Above 1, tokens that were there become less likely; 1: not.")
    ] = 1.0
    seed: Annotated[CountOrZero, Help("The same seed and prompt give the same tokens.")] = 0


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig(Config):
    """How a converted model learns to give what it gave before.

    First its mechanisms alone, those that have weights of their own, then all; learning rates fall to 0 in
    the course of each.
    """

    transfer: Annotated[CountOrZero, Help("Steps in which mechanisms learn what softmax attention gave.")] = (
        200
    )
    distil: Annotated[CountOrZero, Help("Steps in which the model then learns what it gave before.")] = 600
    rank: Annotated[
        CountOrZero, Help("Of low-rank adapters, which learn in the place of all weights; 0: none.")
    ] = 0
    transfer_rate: Annotated[Positive, Help("Learning rate of the transfer.")] = 1e-2
    distil_rate: Annotated[Positive, Help("Learning rate of the rest; adapters take ten times as much.")] = (
        2e-4
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank and not self.distil:
            raise ValueError(f"adapters of rank {self.rank} learn in the distillation: give it steps, distil")


@dataclass(frozen=True, kw_only=True)
class TextsConfig(Config):
    """How a model reads a table of texts."""

    column: Annotated[str, Help("The table's column of texts.")] = "text"
    tokens: Annotated[Count, Help("Of a row at most.")] = 128
    batch: Annotated[Count, Help("Rows of a step.")] = 8
    held_out: Annotated[Count, Help("Rows to measure on, of texts that nothing is learnt from.")] = 200
    seed: Annotated[CountOrZero, Help("Of the order of texts, and which are held out.")] = 0
