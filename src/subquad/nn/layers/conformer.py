"""Conformer: attention sees everything, a convolution sees the neighbourhood, between two halves of a
network.

    x = x + feed_forward(x) / 2
    x = x + attention(norm(x))
    x = x + convolution(x)
    x = norm(x + feed_forward(x) / 2)

The convolution gates its input (GLU), convolves each component along the sequence by itself, normalises, and
mixes components again. Gulati et al.: Conformer. INTERSPEECH 2020, arXiv:2005.08100, sections 2.1 to 2.4.

Departures. Neighbours are a row's real tokens, wherever padding stands, and beyond either end there are
zeros.
The norm in the convolution is a layer norm by default: the paper's batch norm lets the rows of a batch, and
later tokens, into what a token comes out as in training; `norm="batch"` is the paper's, over real tokens.
Relative positions turn queries and keys (`relative`), where the paper has Transformer-XL's; inside a causal
block stands "transformer-xl" itself. Of the paper's kernels of 32 the nearest odd one is the default.

The causal form, which the paper has not, convolves the latest tokens only, so that it streams.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.bounds import OddCount
from subquad.inputs import overwrite
from subquad.mechanism import State, Valid
from subquad.nn.layers.layer import Layer, LayerConfig, LayerTraits, attention_inside
from subquad.nn.layers.norms import Norm, norm_after_convolution
from subquad.nn.positions import HiddenStates
from subquad.nn.sequence import Sequence
from subquad.ops.shared.packing import Packing

Latest = Float[Tensor, "b w m"]  # of a row's gated tokens, those that the next one's kernel covers


class ConformerState(NamedTuple):
    """What a block remembers between the chunks of a stream."""

    attention: State  # the mechanism's own
    latest: Latest


class Conformer(Layer):
    """A Conformer block.

    inside: the mechanism that attends, with its options, as in "local:width=64".
    kernel: tokens that the convolution covers.
    norm: behind the convolution: "layer", or "batch" over real tokens, which has no causal form.
    relative: queries and keys turn with their positions, whatever positions the network has.
    """

    traits = LayerTraits(
        name="conformer",
        paper="arXiv:2005.08100",
        causal="strict",
        state="bounded",
        checked=(
            {"kernel": 5},
            {"kernel": 5, "inside": "linear", "relative": True},
            {"kernel": 3, "inside": "transformer-xl:segment=5,memory=7"},
            {"kernel": 1, "inside": "local:width=3"},
        ),
    )

    def __init__(
        self,
        config: LayerConfig,
        *,
        inside: str = "softmax",
        kernel: OddCount = 31,
        norm: Norm = "layer",
        relative: bool = False,
    ) -> None:
        super().__init__()
        dim, dropout = config.dim, config.dropout
        if norm == "batch" and config.causal:
            raise ValueError(
                "'conformer' has no causal form with norm='batch', whose statistics are of later tokens too: "
                "take norm='layer'"
            )
        self.first_half = feed_forward(config)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention_inside(config, inside, rotary=relative)
        self.convolution = ConvolutionModule(
            dim, kernel=kernel, norm=norm, causal=bool(config.causal), dropout=dropout
        )
        self.second_half = feed_forward(config)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Sequence) -> Sequence:
        x = sequence.values + self.first_half(sequence.values) / 2
        normed = sequence._replace(values=self.attention_norm(x))
        x = x + self.dropout(self.attention.attend(normed))
        x = x + self.convolution(x, sequence.valid)
        return self._end(sequence, x)

    def step(
        self, sequence: Sequence, state: ConformerState | None, *, in_place: bool = False
    ) -> tuple[Sequence, ConformerState]:
        x = sequence.values + self.first_half(sequence.values) / 2
        normed = sequence._replace(values=self.attention_norm(x))
        memory = None if state is None else state.attention
        mixed, memory = self.attention.advance(normed, memory, in_place=in_place)
        x = x + self.dropout(mixed)
        convolved, latest = self.convolution.step(x, sequence.valid, None if state is None else state.latest)
        after = ConformerState(memory, latest)
        if in_place and state is not None:
            after = overwrite(state, after)
        return self._end(sequence, x + convolved), after

    def reserve(self, state: ConformerState, tokens: int) -> ConformerState:
        return state._replace(attention=self.attention.mechanism.reserve(state.attention, tokens))

    def _end(self, sequence: Sequence, x: HiddenStates) -> Sequence:
        return sequence._replace(values=self.norm(x + self.second_half(x) / 2))


def feed_forward(config: LayerConfig) -> nn.Sequential:
    """Half of the network for each token, with its norm in front: section 2.3."""
    return nn.Sequential(
        nn.LayerNorm(config.dim),
        nn.Linear(config.dim, config.hidden),
        nn.SiLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden, config.dim),
        nn.Dropout(config.dropout),
    )


class ConvolutionModule(nn.Module):
    """The convolution with all that stands around it: section 2.2, figure 2.

    dim: width of a token.
    kernel: tokens that it covers: the latest in the causal form, else as many on either side.
    norm: behind the depthwise convolution.
    """

    def __init__(self, dim: int, *, kernel: int, norm: str, causal: bool, dropout: float) -> None:
        super().__init__()
        self.causal = causal
        self.norm_before = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.norm = norm_after_convolution(norm, dim)
        self.mix = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    @property
    def reach(self) -> int:
        """Tokens beyond its own that a kernel covers."""
        return self.depthwise.kernel_size[0] - 1

    def forward(self, x: HiddenStates, valid: Valid | None) -> HiddenStates:
        packing, gated = self._gated(x, valid)
        before = self.reach if self.causal else self.reach // 2
        return self._convolve(F.pad(gated, (0, 0, before, self.reach - before)), valid, packing)

    def step(
        self, x: HiddenStates, valid: Valid | None, latest: Latest | None
    ) -> tuple[HiddenStates, Latest]:
        """The next chunk of a stream, and the latest of its tokens."""
        packing, gated = self._gated(x, valid)
        if latest is None:
            latest = gated.new_zeros(len(gated), self.reach, gated.shape[2])
        around = torch.cat([latest, gated], 1)
        last = packing.count[:, None] + torch.arange(self.reach, device=x.device)
        after = around.gather(1, last[..., None].expand(-1, -1, around.shape[2]))
        return self._convolve(around, valid, packing), after

    def _gated(self, x: HiddenStates, valid: Valid | None) -> tuple[Packing, HiddenStates]:
        """The real tokens of each row side by side, and zeros behind them."""
        gated = F.glu(self.gate(self.norm_before(x)), -1)[:, None]
        packing = Packing.of(valid, like=gated)
        return packing, packing.pack(gated)[:, 0]

    def _convolve(
        self, around: Float[Tensor, "b w m"], valid: Valid | None, packing: Packing
    ) -> HiddenStates:
        length = around.shape[1] - self.reach
        one_more = F.pad(around.mT, (0, 1))  # torch convolves nothing that is shorter than a kernel
        convolved = self.depthwise(one_more)[..., :length].mT
        tokens = packing.unpack(convolved[:, None])[:, 0]
        return self.dropout(self.mix(F.silu(self.norm(tokens, valid))))
