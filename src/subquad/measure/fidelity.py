"""How far a mechanism is from softmax attention on the same q, k and v: by its outputs and by its weights.

The weights of a mechanism that is linear in its values are what it gives for the identity as values, some
columns at a time. Real tokens only: each row is measured without its padding. All is computed in float64, so
that what is lost is the mechanism's doing and not rounding's.

    relative error   |out - softmax| / |softmax|, over all queries
    KL               sum_j p_j log(p_j / w_j) of softmax's weights p, nats, a mean over queries
    entropy          - sum_j w_j log w_j, nats, a mean over queries
    effective rank   exp(- sum_i s_i log s_i) of the matrix of weights, whose singular values sum to one in s

KL and entropy are of distributions, and a mechanism's weights need not be one: some are zero where softmax's
are not, some negative, and their sum is not one. So w are its positive weights over their sum, p are those of
softmax on the same keys over theirs, and what that leaves out stands beside them: `lost`, softmax's mass on
keys to which the mechanism gives nothing, and `negative`, the negative share of the mechanism's mass. A query
to which the mechanism gives no positive weight has lost all, and no KL nor entropy.

Effective rank: Roy and Vetterli, The effective rank: a measure of effective dimensionality. EUSIPCO 2007,
pages 606-610.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from subquad.inputs import require_inputs
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, QueriesKeysValues, Valid, Values
from subquad.registry import network, network_name
from subquad.stand_in import build_stand_in, require_stand_in

MOST_TOKENS = 512  # of a row: the matrix of weights is formed, and its singular values take n ** 3
NEGLIGIBLE = 1e-12  # of a query's largest weight: no more than rounding
LINEAR_TOL = 1e-6  # how far weights times values may be from the outputs of what is linear in values

RealRow = QueriesKeysValues  # one sequence without padding, (1 h t d), (1 h s d), (1 h s d)
WeightMatrix = Float[Tensor, "h t s"]
WeightMatrices = Float[Tensor, "b h t s"]
PerHead = Float[Tensor, " h"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over draws of what is random in a mechanism, and the deviation; None of one draw."""

    mean: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Euclidean norms of vectors: their mean, and the largest."""

    mean: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class Differences:
    """In what a mechanism differs from softmax attention. None: not known, for a reason that stands beside.

    relative_error: of the outputs, over all queries together.
    output_cosine: between an output and softmax's, the mean over queries.
    kl: of the weights, in nats; see the module.
    lost: the share of softmax's mass on keys to which the mechanism gives nothing, or less.
    negative: the share of the mechanism's absolute mass that is negative.
    mass: the sum of a query's weights, which is 1 where they are normalised.
    entropy: of the weights of a query, in nats: log n where all n are the same.
    effective_rank: of the weights of a row, the mean over rows.
    """

    relative_error: Spread | None
    output_cosine: Spread | None
    kl: Spread | None
    lost: Spread | None
    negative: Spread | None
    mass: Spread | None
    entropy: Spread | None
    effective_rank: Spread | None


@dataclass(frozen=True, kw_only=True)
class HeadFidelity(Differences):
    """How far one head is from softmax attention.

    softmax_entropy, softmax_effective_rank: what softmax's weights have in their place.
    query_norm, key_norm: of vectors scaled so that scores are q . k / sqrt(d).
    """

    head: int
    softmax_entropy: float
    softmax_effective_rank: float
    query_norm: Norms
    key_norm: Norms


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How far a mechanism is from softmax attention on given q, k and v.

    draws: that were measured, of what is random in it: 1 where nothing is, 0 where none has figures.
    tokens: real queries that were measured, of all rows.
    left_out: real queries beyond the most that are measured of a row.
    relative_error: of the outputs of all heads together.
    reason: why figures are missing; empty where all are there.
    """

    attention: str
    causal: bool
    draws: int
    tokens: int
    left_out: int
    relative_error: Spread | None
    heads: tuple[HeadFidelity, ...]
    reason: str


class Figures(NamedTuple):
    """Those of one draw, by head and query, the effective rank by head and row; NaN where there is none."""

    squared_error: Float[Tensor, "h n"]
    squared_softmax: Float[Tensor, "h n"]
    output_cosine: Float[Tensor, "h n"]
    kl: Float[Tensor, "h n"]
    lost: Float[Tensor, "h n"]
    negative: Float[Tensor, "h n"]
    mass: Float[Tensor, "h n"]
    entropy: Float[Tensor, "h n"]
    effective_rank: Float[Tensor, "h _"]


@torch.no_grad()
def fidelity(
    attention: str | Mechanism,
    q: Queries,
    k: Keys,
    v: Values,
    *,
    valid: Valid | None = None,
    causal: bool = False,
    scale: float | None = None,
    draws: int = 3,
    most_tokens: int = MOST_TOKENS,
    layer: int = 0,
    **options: Any,
) -> Fidelity:
    """Compare a mechanism with softmax attention on the same q, k and v, `(b h t d), (b h s d), (b h s d)`.

    attention: by name, "performer" or "performer:features=256", and then as it is initialised; or built, and
        then as it is. One that was built is left as it was: a copy in eval mode and float64 is measured.
    valid: `(b s)`, True at real keys. Where queries are as many as keys, it speaks of queries, too.
    causal: whether both see the past alone.
    scale: what softmax multiplies q . k by; queries are multiplied so that 1 / sqrt(d) does the same, for
        the mechanism, too. None: 1 / sqrt(d).
    draws: of weights and random features, where the mechanism is named and anything in it is random.
    most_tokens: of a row; of longer ones the first real ones are measured, and `left_out` says it.
    layer: the number of the layer in its network, for mechanisms that differ from layer to layer.
    options: of a mechanism that is named.

    Shared keys and values are repeated for each head first. Raises `ValueError` for inputs that do not fit or
    are not finite, and for a mechanism that cannot stand in for softmax attention (`subquad.stand_in`).
    """
    if draws < 1 or most_tokens < 1:
        raise ValueError(f"draws and most_tokens are at least 1, not {draws} and {most_tokens}")
    rows, left_out = real_rows(q, k, v, valid=valid, causal=causal, scale=scale, most_tokens=most_tokens)
    longest = max(x.shape[2] for row in rows for x in row)
    dims = Dims(heads=q.shape[1], head_dim=q.shape[3], max_len=longest, layer=layer)
    measured: list[Figures] = []
    first, reason = None, ""
    for mechanism in mechanisms(attention, options, dims, causal=causal, draws=draws):
        mechanism = deepcopy(mechanism).eval().to(q.device, torch.float64)
        outputs = [mechanism(*row) for row in rows]
        if first is not None and all(map(torch.equal, outputs, first)):
            break  # nothing is random
        first = first or outputs
        if not all(out.isfinite().all() for out in outputs):
            measured, reason = [], "its outputs are not finite"
            break
        each = [figures(mechanism, *of_row) for of_row in zip(rows, outputs, strict=True)]
        if any(of_row.mass.isnan().any() for of_row in each):
            reason = "its outputs are not linear in its values, so that it has no weights"
        measured.append(Figures(*(torch.cat(parts, 1) for parts in zip(*each, strict=True))))
    own = attention if isinstance(attention, Mechanism) else None
    return Fidelity(
        attention=own.traits.name if own else network_name(network(str(attention), options)),
        causal=causal,
        draws=len(measured),
        tokens=sum(row.q.shape[2] for row in rows),
        left_out=left_out,
        relative_error=spread([relative_errors(draw, pooled=True) for draw in measured], of=1)[0],
        heads=summaries(rows, measured, causal=causal),
        reason=reason,
    )


def real_rows(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    valid: Valid | None,
    causal: bool,
    scale: float | None,
    most_tokens: int,
) -> tuple[list[RealRow], int]:
    """Each row that has queries and keys, without padding and what is beyond the most; the queries left out.

    In float64, with the scale in the queries. Raises `ValueError` for inputs that do not fit.
    """
    heads, _, head_dim = q.shape[1:]
    widths = dict.fromkeys("qkv", head_dim)
    require_inputs("fidelity", (q, k, v), {"valid": valid}, widths=widths, heads=heads, cross=not causal)
    rows: list[RealRow] = []
    left_out = 0
    for b in range(len(q)):
        keys = torch.ones(k.shape[2], dtype=torch.bool) if valid is None else valid[b].cpu()
        queries = keys if q.shape[2] == k.shape[2] else torch.ones(q.shape[2], dtype=torch.bool)
        by_query, by_key = queries.nonzero()[:, 0].to(q.device), keys.nonzero()[:, 0].to(q.device)
        if not (len(by_query) and len(by_key)):
            continue
        left_out += max(0, len(by_query) - most_tokens)
        places = (by_query, by_key, by_key)
        row = RealRow(
            *(
                x[b : b + 1, :, place[:most_tokens]].to(torch.float64)
                for x, place in zip((q, k, v), places, strict=True)
            )
        )
        if not all(x.isfinite().all() for x in row):
            raise ValueError(f"q, k or v of row {b} has numbers that are not finite: give finite ones")
        rows.append(row if scale is None else row._replace(q=row.q * (scale * head_dim**0.5)))
    if not rows:
        raise ValueError("there is no real token to measure on: give rows that are not all padding")
    return rows, left_out


def mechanisms(
    attention: str | Mechanism, options: Mapping[str, Any], dims: Dims, *, causal: bool, draws: int
) -> Iterator[Mechanism]:
    """The one that was built, or a named one so often, each drawn anew."""
    if isinstance(attention, str):
        for draw in range(draws):
            yield build_stand_in(attention, dims, causal=causal, draw=draw, **options)
        return
    if options:
        raise ValueError(f"a mechanism that is built has its options: leave {', '.join(options)} out")
    require_stand_in(attention, dims, causal=causal)
    yield attention


def softmax_weights(q: Queries, k: Keys, *, valid: Valid | None = None, causal: bool) -> WeightMatrices:
    """Those of scores q . k / sqrt(d); zeros for a query that sees no key."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    if valid is not None:
        hidden |= ~valid[:, None, None]
    if causal:
        hidden |= torch.ones_like(hidden).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden.all(-1, keepdim=True), 0)


def mechanism_weights(
    mechanism: Mechanism, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None
) -> WeightMatrices:
    """What it gives for the identity as values, as many columns at a time as a value is wide."""
    s, width = v.shape[2:]
    ones = F.pad(torch.eye(s, dtype=v.dtype, device=v.device), (0, -s % width))
    columns = [mechanism(q, k, some.expand_as(v), valid=valid) for some in ones.split(width, -1)]
    return torch.cat(columns, -1)[..., :s]


def figures(mechanism: Mechanism, row: RealRow, out: Outputs) -> Figures:
    """Of one row; of its weights they are NaN where the outputs are not weights times values."""
    softmax = softmax_weights(row.q, row.k, causal=mechanism.causal)[0]
    exact, own = softmax @ row.v[0], out[0]
    weights = mechanism_weights(mechanism, *row)[0]
    linear = (weights @ row.v[0] - own).norm() <= LINEAR_TOL * own.norm()
    if not linear:
        weights = torch.full_like(weights, torch.nan)
    kept = weights > NEGLIGIBLE * weights.amax(-1, keepdim=True).clamp_min(0)
    p, w = (x.masked_fill(~kept, 0) for x in (softmax, weights))
    p, w = (x / x.sum(-1, keepdim=True) for x in (p, w))
    kl = (torch.xlogy(p, p) - torch.xlogy(p, w.masked_fill(~kept, 1))).sum(-1).clamp_min(0)
    lost = softmax.masked_fill(kept, 0).sum(-1)
    negative = weights.clamp_max(0).sum(-1).abs() / weights.abs().sum(-1)
    return Figures(
        squared_error=(own - exact).square().sum(-1),
        squared_softmax=exact.square().sum(-1),
        output_cosine=F.cosine_similarity(own, exact, dim=-1),
        kl=kl,
        lost=lost if linear else torch.full_like(lost, torch.nan),
        negative=negative,
        mass=weights.sum(-1),
        entropy=torch.special.entr(w).sum(-1),
        effective_rank=effective_rank(weights)[:, None],
    )


def effective_rank(weights: WeightMatrix) -> PerHead:
    """The exponential of the entropy of its singular values over their sum; NaN for zeros and NaN."""
    singular = torch.linalg.svdvals(weights.nan_to_num())
    shares = singular / singular.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def relative_errors(draw: Figures, *, pooled: bool = False) -> PerHead:
    """By head, or of all heads together."""
    squares = (draw.squared_error, draw.squared_softmax)
    error, norm = (x.sum()[None] if pooled else x.sum(1) for x in squares)
    return (error / norm).sqrt()


def spread(draws: Sequence[PerHead], *, of: int) -> list[Spread | None]:
    """By head, `of` so many, over draws; None where there is none."""
    if not draws:
        return [None] * of
    values = torch.stack(list(draws))
    means = values.mean(0).tolist()
    deviations = values.std(0).tolist() if len(draws) > 1 else [None] * of
    return [
        Spread(mean=mean, deviation=deviation) if isfinite(mean) else None
        for mean, deviation in zip(means, deviations, strict=True)
    ]


def summaries(
    rows: Sequence[RealRow], measured: Sequence[Figures], *, causal: bool
) -> tuple[HeadFidelity, ...]:
    """A line for each head."""
    heads = rows[0].q.shape[1]
    exact = (softmax_weights(row.q, row.k, causal=causal)[0] for row in rows)
    of_rows = [(torch.special.entr(weights).sum(-1), effective_rank(weights)) for weights in exact]
    entropies = torch.cat([entropy for entropy, _ in of_rows], 1).mean(1).tolist()
    ranks = torch.stack([rank for _, rank in of_rows]).mean(0).tolist()
    of_queries, of_keys = (torch.cat([row[i][0].norm(dim=-1) for row in rows], 1) for i in range(2))
    spreads = {
        name: spread([getattr(draw, name).nanmean(1) for draw in measured], of=heads)
        for name in ("output_cosine", "kl", "lost", "negative", "mass", "entropy", "effective_rank")
    } | {"relative_error": spread([relative_errors(draw) for draw in measured], of=heads)}
    return tuple(
        HeadFidelity(
            head=head,
            softmax_entropy=entropies[head],
            softmax_effective_rank=ranks[head],
            query_norm=norms(of_queries[head]),
            key_norm=norms(of_keys[head]),
            **{name: values[head] for name, values in spreads.items()},
        )
        for head in range(heads)
    )


def norms(x: Float[Tensor, " n"]) -> Norms:
    return Norms(mean=x.mean().item(), largest=x.max().item())
