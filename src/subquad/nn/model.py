"""A model of sequences, or of pairs of them: embed their fields, encode, average, decide.

A pair's two sequences go through one encoder and never see one another; what is decided of both follows from
their two averages (a dual encoder). These are averages over real tokens: the first token of a text has read
no more than the others.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.fields import Fields, Inputs, Pair, Readout, token_fields
from subquad.mechanism import Valid
from subquad.nn.blocks import TransformerBlock
from subquad.nn.documents import Documents
from subquad.nn.embedding import embedding
from subquad.nn.encoder import Encoder, EncoderConfig, EncoderState
from subquad.nn.layers.layer import Layer
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.positions import HiddenStates
from subquad.nn.sequence import zero_padded
from subquad.shards import Shards


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

    def __post_init__(self) -> None:
        if isinstance(self.fields, Pair) and self.readout.per != "sequence":
            raise ValueError(f"a pair is answered as a whole, and not per {self.readout.per!r}")


class SequenceModel(nn.Module):
    """Fields, an encoder, and a linear layer over its tokens or their mean; two over the means of a pair."""

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__()
        dim = config.encoder.dim
        self.config = config
        self.pairs = isinstance(config.fields, Pair)
        self.embedding = embedding(token_fields(config.fields), dim)
        self.encoder = Encoder(config.encoder)
        if config.readout.per == "token" and not self.encoder.keeps_length:
            raise ValueError(
                f"{config.encoder.attention!r} gives out other tokens than it is given, and this model "
                "answers per token: take a layer that keeps them, or a task with an answer per sequence"
            )
        self.norm = nn.LayerNorm(dim)
        outputs = config.readout.outputs
        hidden = round(dim * config.encoder.mlp_ratio)
        self.head = PairHead(dim, hidden, outputs) if self.pairs else nn.Linear(dim, outputs)

    def forward(
        self,
        inputs: Inputs,
        valid: Bool[Tensor, "b *sides t"] | None,
        *,
        documents: Documents | None = None,
        shards: Shards | None = None,
    ) -> Float[Tensor, "b *t outputs"]:
        """One vector of outputs a sequence, a pair or a token, as the config's `fields` and `readout` say.

        A sequence without a real token gets that of the mean zero; those of padding are unspecified.

        inputs: as the config's `fields` says.
        valid: True at real tokens. None: all are real, and fused softmax is faster without a mask.
        documents: of the tokens of rows that hold several, as `Encoder.forward` takes them, where the model
            answers per token.
        shards: as `Encoder.forward` takes them. What is answered per sequence all ranks then give alike.
        """
        if documents is not None and self.config.readout.per != "token":
            raise ValueError(
                f"packed documents are answered per token, and this model answers per "
                f"{self.config.readout.per!r}: give each a row of its own"
            )
        if self.pairs and shards is not None:
            raise ValueError("ranks share one sequence, and not pairs of them: leave out shards")
        if self.pairs:
            inputs = tuple(part.flatten(0, 1) for part in inputs)
            valid = None if valid is None else valid.flatten(0, 1)
        embedded = self.embedding(inputs, valid)
        if self.encoder.keeps_length:
            tokens = self.encoder(embedded, valid, documents=documents, shards=shards)
        else:
            tokens, valid, *_ = self.encoder.encode(embedded, valid, documents=documents, shards=shards)
        read = self.norm(tokens if self.config.readout.per == "token" else mean(tokens, valid, shards))
        return self.head(read.unflatten(0, (len(read) // 2, 2)) if self.pairs else read)

    def step(
        self,
        inputs: Inputs,
        valid: Valid | None = None,
        *,
        state: EncoderState | None = None,
        in_place: bool = False,
    ) -> tuple[Float[Tensor, "b t outputs"], EncoderState]:
        """The next chunk of streams, one vector of outputs a token, and the state after it.

        Chunks of any sizes give what `forward` gives on the whole. Raises `ValueError` where the model does
        not answer per token, and where its mechanism cannot stream.

        inputs, valid: as in `forward`, of the chunk alone.
        state, in_place: as in `Encoder.step`.
        """
        if self.config.readout.per != "token":
            raise ValueError(
                f"a stream is answered per token, and this model answers per {self.config.readout.per!r}: "
                "use `forward`"
            )
        tokens, state = self.encoder.step(
            self.embedding(inputs, valid), valid=valid, state=state, in_place=in_place
        )
        return self.head(self.norm(tokens)), state

    def penalty(self) -> Float[Tensor, ""]:
        """The mechanisms' own loss terms; the trainer adds them."""
        return self.encoder.penalty()

    def parameters_by_part(self) -> dict[str, int]:
        """How many parameters there are: in `total`, in `attention`, and in tables that grow with `max_len`.

        Attention is everything in the attention layers: projections and the mechanism's own weights. Of a
        whole layer it is all there is.
        """
        layers = [
            module
            for module in self.modules()
            if isinstance(module, MultiheadAttention)
            or (isinstance(module, Layer) and not isinstance(module, TransformerBlock))
        ]
        return {
            "total": numel(self),
            "attention": numel(nn.ModuleList(layers)),
            "grows_with_length": growing(self.encoder),
        }


class PairHead(nn.Module):
    """Two linear layers, with a ReLU between them, over [a, b, a * b, a - b] of the two sides a and b.

    Tay et al.: Long Range Arena. ICLR 2021, arXiv:2011.04006, appendix A.1.

    dim: width of a side.
    hidden: width between the layers.
    outputs: of the second.
    """

    def __init__(self, dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * dim, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, sides: Float[Tensor, "b 2 m"]) -> Float[Tensor, "b outputs"]:
        a, b = sides.unbind(1)
        return self.layers(torch.cat([a, b, a * b, a - b], -1))


def mean(tokens: HiddenStates, valid: Valid | None, shards: Shards | None = None) -> Float[Tensor, "b m"]:
    """The average of the real tokens, of all ranks where these share them; zero where there is none."""
    if shards is not None:
        total = shards.gather(zero_padded(tokens, valid).sum(1)).sum(0)
        return total / shards.total[:, None].clamp(min=1)
    if valid is None:
        return tokens.mean(1) if tokens.shape[1] else tokens.sum(1)
    return zero_padded(tokens, valid).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


def numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def growing(encoder: Encoder) -> int:
    """The parameters that have another shape in an encoder for sequences twice as long."""
    if encoder.config.max_len is None:
        return 0
    try:
        with torch.random.fork_rng(devices=[]):
            longer = Encoder(replace(encoder.config, max_len=2 * encoder.config.max_len))
    except ValueError:  # a layer of one size, such as that of an image
        return 0
    pairs = zip(encoder.parameters(), longer.parameters(), strict=True)
    return sum(ours.numel() for ours, theirs in pairs if ours.shape != theirs.shape)
