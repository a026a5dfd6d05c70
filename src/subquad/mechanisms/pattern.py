"""Attention by any pattern that can be written down.

    Local(64) | Global(2) | Random(3)        a window, two tokens that see all and are seen, three random keys
    Strided(16) & Local(256)                 every sixteenth token, no further than 256
    PerHead(Local(8), Strided(8))            one pattern for each of two heads

`subquad.patterns` has the atoms, and what `|`, `&`, `PerHead` and `Blocks` make of them.
"""

from jaxtyping import Bool
from torch import Tensor

from subquad.mechanism import Dims, Traits
from subquad.mechanisms.sparse import SparseAttention
from subquad.patterns.grammar import parse


class PatternAttention(SparseAttention):
    """Sees what an expression says; in the causal form, what it says `& CAUSAL`.

    expr: the pattern, such as "Local(64) | Global(2) | Random(3)". A pair that several terms allow counts
        once. Positions count real tokens, and `Random` draws from each row's own.

    Approximates softmax attention by the pairs of the pattern, and equals it where the pattern holds all
    pairs, as "Global(n)" does for n tokens. Work and memory grow with the pairs: linearly for windows,
    globals and random keys, quadratically, if slowly, for strides.

    Not for deciding what to attend to by content: a pattern knows positions only.
    """

    traits = Traits(
        name="pattern",
        paper="arXiv:2106.04554",
        family="sparse",
        bidirectional=True,
        causal="strict",
        state="growing",
        cost=2.0,  # of the worst expression; what an expression costs follows from its pairs
        normalised=True,
        limit={"expr": "Local(24)"},
        tiny={"expr": "Local(2) | Global(1) | Random(2)"},
    )

    def __init__(self, dims: Dims, *, causal: bool, expr: str = "Local(64) | Global(2) | Random(3)") -> None:
        super().__init__(dims, causal=causal, pattern=parse(expr))

    def pairs(self, n: int) -> Bool[Tensor, "*heads {n} {n}"]:
        return self.pattern.mask(n)  # asked pair by pair; `forward` lays them out in tiles
