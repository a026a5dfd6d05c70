"""Classify sequences of events: embed, encode, average, decide."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from subquad.mechanism import Valid
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.sequence import Tokens, zero_padded

Categorical = Int[Tensor, "b t c"]
Numeric = Float[Tensor, "b t n"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """All that a classifier is built from."""

    vocabularies: tuple[int, ...]  # ids of each categorical column, from 0 (rare or unseen) up
    numeric: int  # columns of numbers
    outputs: int  # logits; 1 for a binary target or a regression
    encoder: EncoderConfig


class EventEmbedding(nn.Module):
    """An event is the sum of its categories' vectors and of a linear image of its numbers."""

    def __init__(self, vocabularies: tuple[int, ...], numeric: int, dim: int) -> None:
        super().__init__()
        if not vocabularies and not numeric:
            raise ValueError("events have no column: give at least one categorical or numeric")
        self.categories = nn.ModuleList(nn.Embedding(size, dim) for size in vocabularies)
        self.numbers = nn.Linear(numeric, dim) if numeric else None

    def forward(self, categorical: Categorical, numeric: Numeric, valid: Valid | None) -> Tokens:
        """Nothing of what stands at padding, an id out of range included, is looked at."""
        ids = (categorical if valid is None else categorical.masked_fill(~valid[..., None], 0)).unbind(-1)
        parts = [table(column) for table, column in zip(self.categories, ids, strict=True)]
        if self.numbers is not None:
            parts.append(self.numbers(zero_padded(numeric, valid)))
        return torch.stack(parts).sum(0)


class SequenceClassifier(nn.Module):
    """Events, an encoder, and the mean of its real tokens under a linear layer."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        dim = config.encoder.dim
        self.config = config
        self.embedding = EventEmbedding(config.vocabularies, config.numeric, dim)
        self.encoder = Encoder(config.encoder)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.outputs)

    def forward(
        self, categorical: Categorical, numeric: Numeric, valid: Valid | None
    ) -> Float[Tensor, "b outputs"]:
        """Logits, one row a sequence. A sequence without a real token gets those of the mean zero.

        `valid` may be None where there is no padding: fused softmax is faster without a mask.
        """
        tokens = self.encoder(self.embedding(categorical, numeric, valid), valid)
        return self.head(self.norm(mean(tokens, valid)))

    def penalty(self) -> Float[Tensor, ""]:
        """The mechanisms' own loss terms; the trainer adds them."""
        return self.encoder.penalty()

    def parameters_by_part(self) -> dict[str, int]:
        """How many parameters there are: in `total`, in `attention`, and in tables that grow with `max_len`.

        Attention is everything in the attention layers: projections and the mechanism's own weights.
        """
        layers = [module for module in self.modules() if isinstance(module, MultiheadAttention)]
        return {
            "total": numel(self),
            "attention": numel(nn.ModuleList(layers)),
            "grows_with_length": growing(self.encoder),
        }


def mean(tokens: Tokens, valid: Valid | None) -> Float[Tensor, "b m"]:
    """The average of the real tokens; zero where there is none."""
    if valid is None:
        return tokens.mean(1) if tokens.shape[1] else tokens.sum(1)
    return zero_padded(tokens, valid).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


def numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def growing(encoder: Encoder) -> int:
    """The parameters that have another shape in an encoder for sequences twice as long."""
    if encoder.config.max_len is None:
        return 0
    with torch.random.fork_rng(devices=[]):
        longer = Encoder(replace(encoder.config, max_len=2 * encoder.config.max_len))
    pairs = zip(encoder.parameters(), longer.parameters(), strict=True)
    return sum(ours.numel() for ours, theirs in pairs if ours.shape != theirs.shape)
