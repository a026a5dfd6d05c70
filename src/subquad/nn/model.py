"""A model of sequences: embed their fields, encode, average, decide."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.fields import Fields, Inputs, Readout
from subquad.mechanism import Valid
from subquad.nn.embedding import embedding
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.positions import HiddenStates
from subquad.nn.sequence import zero_padded


@dataclass(frozen=True, kw_only=True)
class SequenceModelConfig:
    """All that a model is built from.

    fields: what its inputs hold.
    readout: what it gives out.
    encoder: everything between.
    """

    fields: Fields
    readout: Readout
    encoder: EncoderConfig


class SequenceModel(nn.Module):
    """Fields, an encoder, and a linear layer over its tokens or their mean."""

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__()
        dim = config.encoder.dim
        self.config = config
        self.embedding = embedding(config.fields, dim)
        self.encoder = Encoder(config.encoder)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.readout.outputs)

    def forward(self, inputs: Inputs, valid: Valid | None) -> Float[Tensor, "b *t outputs"]:
        """One vector of outputs a sequence or a token, as the config's `readout` says.

        A sequence without a real token gets that of the mean zero; those of padding are unspecified.

        inputs: as the config's `fields` says.
        valid: True at real tokens. None: all are real, and fused softmax is faster without a mask.
        """
        tokens = self.encoder(self.embedding(inputs, valid), valid)
        read = tokens if self.config.readout.per == "token" else mean(tokens, valid)
        return self.head(self.norm(read))

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


def mean(tokens: HiddenStates, valid: Valid | None) -> Float[Tensor, "b m"]:
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
