"""Informer's encoder, which halves the sequence between layers, and its decoder, which answers in one pass.

Encoder, section 3.2. A layer attends, and distils what it hands on to the next, but not the last one:

    x = norm(x + attention(x));    x = norm(x + mlp(x));    x = max_pool(elu(norm(convolution(x))))

The convolution has kernels of 3 tokens, the pool too, at every other one: of n tokens ceil(n / 2) go on.

Decoder, section 3.3. It is given the latest tokens and a place for each answer, and fills all places at once:

    x = norm(x + masked_attention(x));    x = norm(x + attention(x; encoded));    x = norm(x + mlp(x))

Zhou et al.: Informer. AAAI 2021, arXiv:2012.07436. As in transformers' Informer, the ends of a sequence are
neighbours to the convolution, and a norm follows on it. It is a layer norm by default; `norm="batch"` is
theirs, over real tokens.

Departures. Padding is no neighbour: a row's real tokens stand side by side, and the ring closes over them.
The places of answers are learnt vectors, which each layer of the decoder adds, where the paper has zeros with
the embedding of their time, which a layer does not know. Tokens go out in other numbers than came in, so that
a model answers per sequence.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from subquad.bounds import Count, CountOrZero
from subquad.nn.layers.layer import (
    Layer,
    LayerConfig,
    LayerTraits,
    attention,
    attention_inside,
    require_form,
)
from subquad.nn.layers.norms import Norm, norm_after_convolution
from subquad.nn.layers.ring import ring, take
from subquad.nn.sequence import Sequence, make_sequence
from subquad.ops.shared.packing import Packing


class InformerEncoder(Layer):
    """A layer of Informer's encoder.

    inside: the mechanism that attends, with its options, as in "informer:factor=3".
    norm: behind the convolution: "layer", or "batch" over real tokens.
    """

    traits = LayerTraits(
        name="informer-encoder",
        paper="arXiv:2012.07436",
        keeps_length=False,
        checked=({"inside": "linear"}, {"inside": "softmax"}),
    )

    def __init__(self, config: LayerConfig, *, inside: str = "informer", norm: Norm = "layer") -> None:
        super().__init__()
        require_form(self.traits, config)
        self.attention = attention_inside(config, inside)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.mlp = feed_forward_of(config)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.keeps_length = config.index == config.depth - 1
        if not self.keeps_length:
            self.convolution = nn.Linear(3 * config.dim, config.dim)
            self.norm = norm_after_convolution(norm, config.dim)

    def forward(self, sequence: Sequence) -> Sequence:
        x = sequence.values
        x = self.attention_norm(x + self.dropout(self.attention.attend(sequence)))
        x = self.mlp_norm(x + self.dropout(self.mlp(x)))
        sequence = sequence._replace(values=x)
        return sequence if self.keeps_length else self.distilled(sequence)

    def distilled(self, sequence: Sequence) -> Sequence:
        """Half as many tokens, those of each row side by side."""
        packing = Packing.of(sequence.valid, like=sequence.values[:, None])
        tokens = packing.pack(sequence.values[:, None])[:, 0]
        before, behind = ring(tokens.shape[1], packing.count)
        around = torch.cat([take(tokens, before), tokens, take(tokens, behind)], -1)
        x = F.elu(self.norm(self.convolution(around), packing.valid))
        if packing.valid is not None:
            x = x.masked_fill(~packing.valid[..., None], -torch.inf)
        length = (x.shape[1] + 1) // 2
        one_more = F.pad(x.mT, (0, 1), value=-torch.inf)  # torch pools nothing that has no token
        pooled = F.max_pool1d(one_more, kernel_size=3, stride=2, padding=1)[..., :length].mT
        if packing.valid is None:
            return make_sequence(pooled)[0]
        valid = torch.arange(length, device=x.device) < (packing.count[:, None] + 1) // 2
        return make_sequence(pooled, valid=valid)[0]


class InformerDecoder(Layer):
    """A layer of Informer's decoder. Those that follow on one another fill the same places.

    answers: places, which are the tokens that go out.
    start: of what comes in the latest tokens, which stand before the places.
    inside: the mechanism of the masked attention among both; softmax attends to what came in.
    """

    traits = LayerTraits(
        name="informer-decoder",
        paper="arXiv:2012.07436",
        keeps_length=False,
        checked=(
            {"answers": 3, "start": 5, "inside": "softmax"},
            {"answers": 2, "start": 0, "inside": "linear"},
        ),
    )

    def __init__(
        self, config: LayerConfig, *, answers: Count = 24, start: CountOrZero = 48, inside: str = "informer"
    ) -> None:
        super().__init__()
        require_form(self.traits, config)
        self.start = start
        self.places = nn.Parameter(torch.empty(answers, config.dim))
        self.attention = attention_inside(replace(config, causal="values"), inside)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.cross = attention(replace(config, rotary=False), "softmax", {})
        self.cross_norm = nn.LayerNorm(config.dim)
        self.mlp = feed_forward_of(config)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.places, std=0.02)  # as learnt positions

    def forward(self, sequence: Sequence) -> Sequence:
        return self.run_plain([self], sequence)

    @classmethod
    def run_plain(cls, layers: list[Layer], sequence: Sequence) -> Sequence:
        """Layers that fill the same places, each with what came in before its eyes."""
        decoders = cast("list[InformerDecoder]", layers)
        answers = len(decoders[0].places)
        if any(len(each.places) != answers for each in decoders):
            raise ValueError("layers of one decoder fill as many places: give each the same 'answers'")
        x = decoders[0].begun(sequence)
        for decoder in decoders:
            x = decoder.filled(x, sequence)
        return make_sequence(x.values[:, x.values.shape[1] - answers :])[0]

    def begun(self, encoded: Sequence) -> Sequence:
        """The latest tokens of each row, and empty places behind them."""
        packing = Packing.of(encoded.valid, like=encoded.values[:, None])
        tokens = packing.pack(encoded.values[:, None])[:, 0]
        latest = packing.count[:, None] - self.start + torch.arange(self.start, device=tokens.device)
        tokens = F.pad(tokens, (0, 0, 0, 1))  # so that there is one to take
        started = take(tokens, latest.clamp(min=0))
        answers, width = self.places.shape
        empty = tokens.new_zeros(len(tokens), answers, width)
        valid = F.pad(latest >= 0, (0, answers), value=True)
        return make_sequence(torch.cat([started, empty], 1), valid=valid)[0]

    def filled(self, sequence: Sequence, encoded: Sequence) -> Sequence:
        x = sequence.values + F.pad(self.places, (0, 0, self.start, 0))
        mixed = self.attention.attend(sequence._replace(values=x))
        x = self.attention_norm(x + self.dropout(mixed))
        padding = None if encoded.valid is None else ~encoded.valid
        read, _ = self.cross(x, encoded.values, encoded.values, key_padding_mask=padding)
        x = self.cross_norm(x + self.dropout(read))
        return sequence._replace(values=self.mlp_norm(x + self.dropout(self.mlp(x))))


def feed_forward_of(config: LayerConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dim)
    )
