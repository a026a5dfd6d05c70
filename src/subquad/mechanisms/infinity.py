"""The infinity-former: a short-term memory of tokens beside an unbounded, continuous long-term memory.

A sequence is read in segments. A token attends to the segment before its own and to its own up to itself, as
in Transformer-XL, and reads all that came earlier from a signal of N coefficients, however much that was:

    out_i = softmax attention over [segment before; own segment up to i]  +  W_o z_i
    z_i   = E[V(t)] under a Gaussian over t whose mean and variance follow from q_i and the signal K(t)

When a segment is full, the one before it leaves the short-term memory and is written into the signals. Work
is linear in length, and the state as large after a million tokens as after one. `memories/short_term.py`,
`memories/continuous.py` and `memories/reads.py` say how each memory works, with sections and departures of
their own.

`infinity` keeps a signal of keys and one of values. The paper's signal is of hidden states, and projected
when read. Ridge regression is linear in what it fits, so that fitting X and projecting the coefficients,
(G^T X) W, is projecting X and fitting, G^T (X W): its signals are of `long_k` and `long_v`, the layer's own
projections for the long-term memory.

`infinity-gpt2` is what the authors' configuration for GPT-2 has. A mask, which looks at neighbours, decides
channel by channel what of the hidden states enters the signal, and does not commute with projections, so
that there the signal is of the masked hidden states X, and W_K and W_V act on its coefficients:

    X_i = x_i * sigmoid(C_-1 x_(i-1) + C_0 x_i + C_1 x_(i+1) + c),    K = B W_K,    V = B W_V

all across heads, as is W_o; nothing stands before or behind a segment. One w_mu and one w_sigma serve all
heads, without b, and variances are at least 1e-4.

Martins, Marinho, Martins: infinity-former: Infinite Memory Transformer. ACL 2022, arXiv:2109.00301,
section 3. Defaults of `infinity-gpt2` but `segment` are those of the authors' code for GPT-2; so are those of
`infinity` but for its `smallest_variance` of 1e-6, which is their code's for sorting. The latter has besides
`ridge=1.0`, `tau=0.75`, `narrow=0.01` and `wide=0.05`. Where it departs:

- `infinity` lacks the mask that every configuration of the authors has.
- Theirs has an output projection for each memory. Here the layer's comes after W_o z_i too. With
  `across_heads=True`, as in `infinity-gpt2`, the long-term memory can still have any, as long as the layer's
  can be inverted; by default W_o is a map for each head, and cannot mix them.
- The x that `infinity-gpt2` masks is an input like others, `memory`: the layer projects to it. It is theirs
  where that projection is the identity.
- Their GPT-2 writes a segment as soon as it is full, and its short-term memory is that segment alone, without
  relative positions. Here it is Transformer-XL's two in both.
- The penalty leaves the means free. That of their GPT-2 pulls them to -1, where no mean can be.
- Segments count real tokens, each row by its own clock, and the reads of one segment decide what the next
  write keeps.

Gradients: the authors' code stops them at what is remembered and at the signal that a write contracts, and so
does `detach=True`. The short-term memory then gets none. Of the signal that a segment reads, what the latest
write added has one, for what projects and masks it, and what was there before has none; and the layer makes
the inputs behind v of hidden states without a gradient into these (`Mechanism.detached_inputs`). By default
gradients flow through both memories as far as a call and its state reach.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.bounds import Count, EvenCount, OpenShare, Positive, PositiveOrZero
from subquad.mechanism import Dims, Keys, Queries, Traits, Values
from subquad.mechanisms.unbounded import Coefficients, DensityName, RowSegment, Segment, UnboundedAttention
from subquad.memories.literal import Row

TINY = {"segment": 5, "basis": 8, "narrow": 0.1, "wide": 0.2, "samples": 12}


class InfinityInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    long_k: Keys  # for the long-term memory
    long_v: Values


class InfinityGpt2Inputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    memory: Keys  # hidden states


class InfinityAttention(UnboundedAttention):
    """Transformer-XL attention over two segments, plus a Gaussian read of everything before them.

    segment: tokens per segment.
    basis: bumps of the signal, half of them narrow and half wide; even.
    narrow: the width of a narrow bump, the past having length 1.
    wide: the width of a wide bump.
    ridge: lambda of the fit.
    tau: the share of the signal that a write leaves to the past, between 0 and 1.
    samples: points at which the past is read when it is written anew.
    sticky: whether these are close together where the past was read most; otherwise they are evenly spread.
    kl_weight: `penalty()` is this times the divergence of the reads from Gaussians `deviation` wide.
    deviation: of the Gaussians that reads are held near, and of reads at first.
    smallest_variance: of a read.
    density: the form of a read: "gaussian", or "sparsemax", a parabola that looks nowhere outside a part of
        the past.
    shared: whether all heads have one w_mu and one w_sigma, and no b.
    across_heads: whether W_o mixes heads, for h times its work.
    detach: whether hidden states get no gradient from later segments, through either memory.

    A token costs O(segment + basis) and a segment O(basis (samples + segment)); fewer of `basis` and
    `samples` make it faster and the past vaguer.

    Approximates causal softmax attention with relative positions: exact for its own segment and the one
    before, by one smooth average of everything older. Where a sequence fits into two segments nothing is
    older; it then equals plain softmax attention if, besides, u, v and W_R of `short_term` are zero.

    Not for sequences of two segments, where it is Transformer-XL at a higher price, and not for recalling
    single tokens of long ago: a read averages over a stretch of the past. Not for export with a free length:
    the memory is written segment by segment, and a graph holds the segments of one length.
    """

    inputs = InfinityInputs
    traits = Traits(
        name="infinity",
        paper="arXiv:2109.00301",
        family="memory",
        causal="strict",
        state="bounded",
        tiny=TINY,
        lossless={**TINY, "segment": 12},
    )

    def _remembered(self, *tokens: Segment) -> Segment:
        return torch.cat(tokens, -1)

    def _keys(self, signal: Coefficients) -> Coefficients:
        return signal.chunk(2, 2)[0]

    def _values(self, signal: Coefficients) -> Coefficients:
        return signal.chunk(2, 2)[1]

    def _define_remembered(self, *tokens: RowSegment) -> RowSegment:
        return torch.cat(tokens, -1)

    def _define_keys_and_values(self, B: Float[Tensor, "h n f"]) -> tuple[Row, Row]:
        K, V = B.chunk(2, -1)
        return K, V


class InfinityGpt2Attention(UnboundedAttention):
    """`infinity` as the authors configured it for GPT-2: masked hidden states, maps across heads.

    segment, basis, narrow, wide, ridge, tau, samples, sticky: of the signal, as in `infinity`.
    kl_weight, deviation, smallest_variance, density: of reads, as in `infinity`; `shared` and `across_heads`
        are on for good.
    mask: whether a mask decides what enters the signal; otherwise everything does.
    detach: where gradients stop, as in `infinity`.

    The input `memory` takes the place of `long_k` and `long_v`.

    To what `infinity` costs it adds maps across heads: C and W_o for each token, and W_K and W_V for each
    bump in each segment.

    Approximates what `infinity` does, with a say in what of the past is worth a place in the signal.

    Not for what `infinity` is not for, and not for small models: C, W_K, W_V and W_o are six matrices as
    large as the layer's output projection.
    """

    inputs = InfinityGpt2Inputs
    traits = Traits(
        name="infinity-gpt2",
        paper="arXiv:2109.00301",
        family="memory",
        causal="strict",
        state="bounded",
        tiny=TINY,
        lossless={**TINY, "segment": 12},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        segment: Count = 128,
        basis: EvenCount = 512,
        narrow: Positive = 0.005,
        wide: Positive = 0.01,
        ridge: Positive = 0.5,
        tau: OpenShare = 0.5,
        samples: Count = 512,
        sticky: bool = True,
        kl_weight: PositiveOrZero = 1e-6,
        deviation: Positive = 0.05,
        smallest_variance: Positive = 1e-4,
        density: DensityName = "gaussian",
        mask: bool = True,
        detach: bool = False,
    ) -> None:
        super().__init__(
            dims,
            causal=causal,
            segment=segment,
            basis=basis,
            narrow=narrow,
            wide=wide,
            ridge=ridge,
            tau=tau,
            samples=samples,
            sticky=sticky,
            kl_weight=kl_weight,
            deviation=deviation,
            smallest_variance=smallest_variance,
            density=density,
            shared=True,
            across_heads=True,
            detach=detach,
        )
        width, self.mask = dims.heads * dims.head_dim, mask
        self.W_K = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.W_V = nn.Parameter(torch.randn(width, width) * width**-0.5)
        if mask:
            bound = (3 * width) ** -0.5  # torch's for a convolution
            self.C = nn.Parameter(torch.empty(3, width, width).uniform_(-bound, bound))
            self.c = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def _remembered(self, *tokens: Segment) -> Segment:
        (x,) = tokens
        if not self.mask:
            return x
        C, c = self.C.to(x.dtype), self.c.to(x.dtype)
        padded = F.pad(x.transpose(1, 2).flatten(2), (0, 0, 1, 1))
        neighbours = torch.cat([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], -1)
        gate = torch.addmm(c, neighbours.flatten(0, 1), C.flatten(0, 1)).sigmoid()
        return x * gate.unflatten(0, x.shape[::2]).unflatten(2, x.shape[1::2]).transpose(1, 2)

    def _keys(self, signal: Coefficients) -> Coefficients:
        return across(self.W_K, signal)

    def _values(self, signal: Coefficients) -> Coefficients:
        return across(self.W_V, signal)

    def _define_remembered(self, *tokens: RowSegment) -> RowSegment:
        (x,) = tokens
        if not self.mask or not x.shape[1]:
            return x
        channels = x.mT.flatten(0, 1)  # of all heads
        kernel = self.C.permute(2, 1, 0)  # as torch's convolutions have it: out, in, offset
        return x * F.conv1d(channels, kernel, self.c, padding=1).sigmoid().unflatten(0, x.shape[::2]).mT

    def _define_keys_and_values(self, B: Float[Tensor, "h n f"]) -> tuple[Row, Row]:
        across = B.transpose(0, 1).flatten(1)
        K, V = ((across @ W).unflatten(1, B.shape[::2]).transpose(0, 1) for W in (self.W_K, self.W_V))
        return K, V


def across(W: Float[Tensor, "hd hd"], signal: Coefficients) -> Coefficients:
    """The signal times W, channels of all heads side by side."""
    flat = signal.flatten(1, 2)
    return torch.bmm(W.to(flat.dtype).mT.expand(len(flat), -1, -1), flat).view_as(signal)
