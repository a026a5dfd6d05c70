"""Sparse Transformer: attention factorised into two sparse steps that together reach every token.

Strided, for data with a period l, such as images and music:

    A1_i = {j : i - l <= j <= i}            A2_i = {j <= i : (i - j) mod l = 0}

Fixed, for data without one, such as text, where the last c tokens of each block of l sum it up:

    A1_i = {j <= i : floor(j / l) = floor(i / l)}            A2_i = {j <= i : j mod l >= l - c}

Any j <= i is about two steps from i. The two can be merged, A1_i or A2_i, be given to different heads, or
alternate from layer to layer. The bidirectional form leaves out j <= i, and takes l tokens on either side.

A token sees about l + t / l keys (fixed: l + c t / l), so that with l near sqrt(t) a sequence costs
O(t sqrt(t) d). With l as it is, work grows with t^2 / l in the end, which is what the trait `cost` says.

Heads may take turns at the last c tokens of a block, the c before those and so on, which the paper prefers to
the same c for all (section 4.3):

    A2_i = {j <= i : l - (s + 1) c <= j mod l < l - s c},    s = head mod subblocks

Child, Gray, Radford, Sutskever: Generating Long Sequences with Sparse Transformers. arXiv:1904.10509,
sections 4.2, 4.3 and 5.1. Stride and columns are by default those of its model of text (Enwik8), but heads do
not take turns unless `subblocks` says so, which is `num_verts` in the authors' code. The strided A1 has l + 1
keys as in the paper, where their code has l.
"""

from typing import Annotated

import torch
from jaxtyping import Bool
from torch import Tensor

from subquad.bounds import Count, one_of
from subquad.mechanism import Dims, Traits
from subquad.mechanisms.sparse import SparseAttention
from subquad.patterns import Blocks, Local, Pattern, PerHead, Strided, Summaries

Kind = Annotated[str, one_of("strided", "fixed")]
HeadPatterns = Annotated[str, one_of("merged", "split", "alternate")]


class SparseTransformer(SparseAttention):
    """Sees its neighbourhood, and one token in `stride` (or a summary of each block) everywhere else.

    kind: "strided", for data with a period; "fixed", for data without.
    stride: l, tokens; choose it near the square root of the length.
    columns: c, tokens that sum up a block; for "fixed" only.
    subblocks: how many stretches of c tokens heads take turns at; for "fixed" only.
    heads: "merged", each sees A1 and A2; "split", the first half of the heads sees A1 and the other A2;
        "alternate", layers see A1 and A2 in turn, the first layer A1.

    Where "fixed" has A2 alone, a causal token before the first summary sees nothing and gets zeros.

    Approximates softmax attention in two hops, and equals it when the stride is the sequence's length.

    Not for lengths far beyond the square of the stride, where it costs as softmax does, divided by the
    stride; nor "strided" for data without a period, which the paper found to do worse.
    """

    traits = Traits(
        name="sparse-transformer",
        paper="arXiv:1904.10509",
        family="sparse",
        bidirectional=True,
        causal="strict",
        state="growing",
        cost=2.0,  # 1.5 where the stride grows with the root of the length
        normalised=True,
        limit={"stride": 24, "columns": 1},
        tiny={"stride": 5, "columns": 2},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        kind: Kind = "fixed",
        stride: Count = 128,
        columns: Count = 32,
        subblocks: Count = 1,
        heads: HeadPatterns = "merged",
    ) -> None:
        if columns > stride:
            raise ValueError(
                f"'sparse-transformer': columns must be no more than the stride, not stride={stride!r} and "
                f"columns={columns!r}"
            )
        if subblocks * columns > stride:
            raise ValueError(
                f"'sparse-transformer': subblocks must be from 1 to stride // columns = {stride // columns}, "
                f"not {subblocks!r}"
            )
        if subblocks > 1 and kind != "fixed":
            raise ValueError("'sparse-transformer': subblocks are for kind='fixed'; leave subblocks=1")
        if heads == "split" and dims.heads < 2:
            raise ValueError("'sparse-transformer': heads='split' needs two heads at least; use 'merged'")
        self.kind, self.stride, self.columns, self.heads = kind, stride, columns, heads
        self.subblocks = subblocks
        super().__init__(dims, causal=causal, pattern=self._pattern(dims))

    def _pattern(self, dims: Dims) -> Pattern:
        l, c = self.stride, self.columns
        if self.kind == "strided":
            first, seconds = Local(l), [Strided(l)]
        else:
            first = Blocks(Local(0), l)
            seconds = [Summaries(l, c, before=c * s) for s in range(self.subblocks)]
        turns = [seconds[head % self.subblocks] for head in range(dims.heads)]
        if self.heads == "split":
            half = dims.heads // 2
            return PerHead(*[first] * (dims.heads - half), *turns[:half])
        second = turns[0] if self.subblocks == 1 else PerHead(*turns)
        return first | second if self.heads == "merged" else (first, second)[dims.layer % 2]

    def pairs(self, n: int) -> Bool[Tensor, "*heads {n} {n}"]:
        i, j, l = torch.arange(n)[:, None], torch.arange(n), self.stride
        s = (torch.arange(self.dims.heads) % self.subblocks)[:, None, None]
        if self.kind == "strided":
            A1, A2 = (i - l <= j) & (j <= i + l), ((i - j) % l == 0).expand(len(s), n, n)
        else:
            A1, c = (i // l == j // l), self.columns
            A2 = ((l - (s + 1) * c <= j % l) & (j % l < l - s * c)).expand(-1, n, n)
        if self.causal:
            A1, A2 = A1 & (j <= i), A2 & (j <= i)
        if self.heads == "merged":
            return A1 | A2
        A1 = A1.expand(A2.shape)
        if self.heads == "alternate":
            return (A1, A2)[self.dims.layer % 2]
        half = self.dims.heads // 2
        return torch.cat([A1[half:], A2[:half]])
