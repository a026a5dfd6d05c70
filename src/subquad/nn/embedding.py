"""From the fields of a batch to tokens of a model."""

from typing import assert_never

import torch
from torch import nn

from subquad.fields import Events, Inputs, Tokens
from subquad.mechanism import Valid
from subquad.nn.positions import HiddenStates
from subquad.nn.sequence import zero_padded


def embedding(fields: Tokens | Events, dim: int) -> nn.Module:
    """The module that embeds inputs: `module(inputs, valid) -> (b t m)`, unspecified at padding.

    fields: what the inputs hold, of one sequence a row.
    dim: width of the model, m.
    """
    match fields:
        case Tokens():
            return TokenEmbedding(fields, dim)
        case Events():
            return EventEmbedding(fields, dim)
        case _:
            assert_never(fields)


class TokenEmbedding(nn.Module):
    """A vector for each symbol."""

    def __init__(self, fields: Tokens, dim: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(fields.vocabulary, dim)

    def forward(self, inputs: Inputs, valid: Valid | None) -> HiddenStates:
        (ids,) = inputs
        return self.symbols(ids if valid is None else ids.masked_fill(~valid, 0))


class EventEmbedding(nn.Module):
    """An event is the sum of its categories' vectors and of a linear image of its numbers."""

    def __init__(self, fields: Events, dim: int) -> None:
        super().__init__()
        self.categories = nn.ModuleList(nn.Embedding(size, dim) for size in fields.vocabularies)
        self.numbers = nn.Linear(fields.numeric, dim) if fields.numeric else None

    def forward(self, inputs: Inputs, valid: Valid | None) -> HiddenStates:
        categorical, numeric = inputs
        ids = (categorical if valid is None else categorical.masked_fill(~valid[..., None], 0)).unbind(-1)
        parts = [table(column) for table, column in zip(self.categories, ids, strict=True)]
        if self.numbers is not None:
            parts.append(self.numbers(zero_padded(numeric, valid)))
        return torch.stack(parts).sum(0)
