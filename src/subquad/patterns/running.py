"""Softmax attention over the pairs of a pattern, and over no others: forwards, backwards, and row by row.

    out_i = sum_j p_ij v_j / sum_j p_ij,    p_ij = exp(q_i . k_j / sqrt(d) - m_i),    j that i sees

A pattern's parts lay tokens out in tiles (`patterns/parts.py`). Each pair belongs to the first part that
covers it, so that a union counts no pair twice. All parts of a row share one maximum m_i, and their sums add
up: together they are one softmax, whose work and memory grow with the tiles.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.backends import wanted
from subquad.ops.shared.precision import wide
from subquad.ops.tile_attention import tile_attention
from subquad.ops.window_attention import window_attention
from subquad.patterns import flex
from subquad.patterns.flex import PatternCall
from subquad.patterns.graph import pattern_attention
from subquad.patterns.layout import layout
from subquad.patterns.parts import Part, Scattered
from subquad.patterns.pattern import Pattern, PerHead

Heads = Float[Tensor, "b h s _"]


def attend(
    pattern: Pattern,
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    *,
    n: Int[Tensor, " b"] | None,
) -> Float[Tensor, "b h s e"]:
    """Attention by `pattern` within sequences of which the first n tokens are real.

    q, k  (batch, heads, tokens, d), v (batch, heads, tokens, e): one floating dtype
    n     int64 (batch). None: all tokens are real

    Sums are kept in float32 at least, and a query that sees no key gives zeros. FlexAttention serves where it
    can, and else windows and tiles (`subquad.ops`). Raises `ValueError` for a pattern of other heads, and for
    inputs whose shapes or dtypes do not fit one another.
    """
    call = PatternCall(pattern, q, k, v, n)
    if flex_may_serve() and flex.refuses(call) is None:
        return flex.forward(call)
    if isinstance(pattern, PerHead):
        require_heads(pattern, q.shape[1])
        return by_head(pattern, lambda one, own: attend(one, q[:, own], k[:, own], v[:, own], n=n))
    s = q.shape[2]
    if s == 0 or q.shape[0] == 0:
        return v
    if torch.compiler.is_compiling():
        return pattern_attention(q, k, v, n=n, pattern=repr(pattern))
    band, tilings = layout(pattern, s, n, q.device)
    if band is not None and not tilings:
        return window_attention(q, k, v, left=band[0], right=band[1], lengths=n)[0]
    return tile_attention(*wide(q, k, v), tilings=tilings, lengths=n, band=band).to(v.dtype)


@torch.compiler.assume_constant_result  # a graph has the backend that was wanted when it was traced
def flex_may_serve() -> bool:
    return wanted() in (None, "flex")


def attend_rows(
    pattern: Pattern,
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    *,
    i: Int[Tensor, "b t"],
) -> Float[Tensor, "b h t e"]:
    """The same, for a causal pattern, of rows i alone; only the keys that they see are read."""
    if isinstance(pattern, PerHead):
        require_heads(pattern, q.shape[1])
        return by_head(
            pattern,
            lambda one, own: attend_rows(one, q[:, own], k[:, own], v[:, own], i=i),
        )
    s = k.shape[2]
    if q.shape[2] == 0:
        return q @ k.mT @ v
    parts = [Scattered(covers=covers, keys_at=keys) for keys, covers in pattern.reach(i, length=s)]
    j = torch.arange(1, s + 1, device=q.device)[None, None, :, None]
    real = torch.full((1,), s, device=q.device)
    return mix(parts, q, k, v, i=i[:, None, :, None] + 1, j=j, n=real)


def mix(
    parts: Sequence[Part],
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    *,
    i: Int[Tensor, "#b 1 t 1"],
    j: Int[Tensor, "#b 1 s 1"],
    n: Int[Tensor, " #b"],
) -> Float[Tensor, "b h t e"]:
    """One softmax over the pairs of all parts; `i` and `j` count positions from one."""
    t = q.shape[2]
    parts = sorted(parts, key=lambda part: isinstance(part, Scattered))  # whose predicates cost most
    q = q * q.shape[-1] ** -0.5
    scores, top = [], q.new_full((*q.shape[:3], 1), torch.finfo(q.dtype).min)
    for part, seen in zip(parts, own_pairs(parts, i=i, j=j, n=n), strict=True):
        score = (part.queries(q) @ part.keys(k).mT).masked_fill(~seen, -torch.inf)
        peak = score.detach().amax(-1, keepdim=True)
        top = torch.maximum(top, part.restore(peak, length=t, fill=-torch.inf))
        scores.append(score)
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the last column sums the weights
    total = q.new_zeros(())
    for part, score in zip(parts, scores, strict=True):
        p = (score - part.queries(top)).exp()
        total = total + part.restore(p @ part.keys(v), length=t, fill=0.0)
    numerator, denominator = total[..., :-1], total[..., -1:]
    return numerator / denominator.masked_fill(denominator == 0, 1)


def own_pairs(
    parts: Sequence[Part], *, i: Int[Tensor, "#b 1 t 1"], j: Int[Tensor, "#b 1 s 1"], n: Int[Tensor, " #b"]
) -> list[Bool[Tensor, "#b 1 tiles a c"]]:
    """For each part, which pairs of its tiles it covers and no part before it does."""
    n, found = n[:, None, None, None, None], []
    for index, part in enumerate(parts):
        row, key = part.queries(i) - 1, (part.keys(j) - 1).mT
        seen = (row >= 0) & (key >= 0) & (key < n) & part.covers(row, key, n)
        for earlier in parts[:index]:
            seen = seen & ~earlier.covers(row, key, n)
        found.append(seen)
    return found


def by_head(pattern: PerHead, run: Callable[[Pattern, list[int]], Heads]) -> Heads:
    """`run` each distinct pattern on the heads that have it."""
    order = [head for _, own in pattern.groups for head in own]
    together = torch.cat([run(one, own) for one, own in pattern.groups], 1)
    return together[:, [order.index(head) for head in range(len(order))]]


def require_heads(pattern: PerHead, heads: int) -> None:
    if pattern.heads != heads:
        raise ValueError(f"{pattern!r} is for {pattern.heads} heads, not {heads}")
