"""Attention over a pattern row by row, for streams: only the keys that the rows see are read.

    out_i = sum_j p_ij v_j / sum_j p_ij,    p_ij = exp(q_i . k_j / sqrt(d) - m_i),    j that i sees

Each pair belongs to the first part that covers it, so that a union counts no pair twice. All parts of a row
share one maximum m_i, and their sums add up: together they are one softmax.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.patterns.parts import Part, Scattered
from subquad.patterns.pattern import Pattern, PerHead
from subquad.patterns.pattern_attention import require_heads
from subquad.patterns.pattern_attention.tiles import run_by_head


def attend_rows(
    pattern: Pattern,
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    *,
    i: Int[Tensor, "b t"],
) -> Float[Tensor, "b h t e"]:
    """What `attend` gives rows i alone, by a causal pattern, with keys and values of all rows.

    Raises `ValueError` for a pattern of other heads.
    """
    require_heads(pattern, q.shape[1])
    if isinstance(pattern, PerHead):
        return run_by_head(pattern, lambda one, *own: attend_rows(one, *own, i=i), q, k, v)
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
