"""Softmax attention over the pairs of a pattern, and over no others.

    out_i = sum_j p_ij v_j / sum_j p_ij,    p_ij = exp(q_i . k_j / sqrt(d)),    j that i sees

It is a function above the operators of `ops/`: `flex` is PyTorch's own operator, which differentiates itself,
and `tiles` are ours.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from subquad.ops.backends import Composite
from subquad.patterns.pattern import Pattern


class PatternCall(NamedTuple):
    """Inputs of `attend`."""

    pattern: Pattern
    q: Float[Tensor, "b h s d"]
    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s e"]
    valid: Bool[Tensor, "b s"] | None


BACKENDS = Composite[PatternCall](__name__, "flex", "tiles")


def attend(
    pattern: Pattern,
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    *,
    valid: Bool[Tensor, "b s"] | None,
) -> Float[Tensor, "b h s e"]:
    """Attention by `pattern` within sequences, whose positions count real tokens.

    q, k   (batch, heads, tokens, d), v (batch, heads, tokens, e): one floating dtype
    valid  bool (batch, tokens): True at real tokens; padding may stand anywhere. None: all are real

    Sums are kept in float32 at least, and a query that sees no key, or is padding, gives zeros. Raises
    `ValueError` for a pattern of other heads, and for inputs whose shapes or dtypes do not fit one another.
    """
    require_heads(pattern, q.shape[1])
    return BACKENDS.serve(PatternCall(pattern, q, k, v, valid))


def require_heads(pattern: Pattern, heads: int) -> None:
    """Raise `ValueError` for a pattern of other heads."""
    if pattern.heads not in (None, heads):
        raise ValueError(f"{pattern!r} is for {pattern.heads} heads, not {heads}")
