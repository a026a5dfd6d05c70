"""What the definitions of memories are made of: rows without padding, a vector for each distance, reads."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Normal

from subquad.memories.reads import BINS, GRAIN
from subquad.memories.short_term import RelativeAttention
from subquad.ops.shared.precision import wide

Row = Float[Tensor, "h t d"]


def row_by_row(
    define: Callable[..., Row], *inputs: Float[Tensor, "b h t d"], valid: Bool[Tensor, "b t"] | None
) -> Float[Tensor, "b h t d"]:
    """What `define` gives for each row as it is without its padding; zeros at padding."""
    out = torch.zeros_like(inputs[0])
    for row in range(len(out)):
        real = slice(None) if valid is None else valid[row]
        out[row, :, real] = define(*wide(*(x[row][:, real] for x in inputs))).to(out.dtype)
    return out


def relative_attention(
    q: Float[Tensor, "h t d"],
    k: Float[Tensor, "h s d"],
    v: Float[Tensor, "h s d"],
    *,
    weights: RelativeAttention,
    reach: int,
) -> Row:
    """The four terms of Transformer-XL for the last `t` of `s` tokens, `reach` back at most."""
    return relative_weights(q, k, weights=weights, reach=reach) @ v


def relative_weights(
    q: Float[Tensor, "h t d"], k: Float[Tensor, "h s d"], *, weights: RelativeAttention, reach: int
) -> Float[Tensor, "h t s"]:
    u, v_bias, W_R = weights.u, weights.v, weights.W_R
    t, s, d = q.shape[1], k.shape[1], q.shape[2]
    distance = torch.arange(s - t, s, device=q.device)[:, None] - torch.arange(s, device=q.device)
    half = W_R.shape[1] // 2
    angle = distance[..., None] / 10_000 ** (torch.arange(half, dtype=q.dtype, device=q.device) / half)
    R = torch.einsum("hrd,tsr->htsd", W_R, torch.cat([angle.sin(), angle.cos()], -1))
    content = torch.einsum("htd,hsd->hts", q, k) + torch.einsum("hd,hsd->hs", u, k)[:, None]
    position = torch.einsum("htd,htsd->hts", q, R) + torch.einsum("hd,htsd->hts", v_bias, R)
    unseen = (distance < 0) | (distance >= reach)
    scores = ((content + position) / d**0.5).masked_fill(unseen, -torch.inf)
    return scores.softmax(-1)


def seen(x: Row, start: int, *, memory: int, segment: int, detach: bool) -> Float[Tensor, "h _ d"]:
    """The segment from `start` on behind the memory before it."""
    past = x[:, max(start - memory, 0) : start]
    return torch.cat([past.detach() if detach else past, x[:, start : start + segment]], 1)


def normal(t: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return Normal(mean, deviation).log_prob(t).exp()


def even(count: int, *, like: Tensor) -> Float[Tensor, " {count}"]:
    """The middles of `count` equal parts of [0, 1]."""
    return torch.arange(0.5, count, dtype=like.dtype, device=like.device) / count


class Density(NamedTuple):
    """Where a row's queries read; `memories/reads.py` says what the two kinds are."""

    kind: str
    m: Float[Tensor, "h t 1"]
    v: Float[Tensor, "h t 1"]

    def expectation(self, mu: Float[Tensor, " n"], s: Float[Tensor, " n"]) -> Float[Tensor, "h t n"]:
        """E[psi]; under a parabola, from the moments of a bump between m - a and m + a."""
        if self.kind == "gaussian":
            return normal(self.m, mu, (self.v + s**2).sqrt())
        a, x, phi = self._a(), self.m - mu, Normal(0.0, 1.0)
        lower, upper = (x - a) / s, (x + a) / s
        at_lower, at_upper = phi.log_prob(lower).exp(), phi.log_prob(upper).exp()
        mass = phi.cdf(upper) - phi.cdf(lower)
        first = at_lower - at_upper
        second = mass + lower * at_lower - upper * at_upper
        return ((a**2 - x**2) * mass + 2 * x * s * first - s**2 * second) / (2 * self.v)

    def mass(self, edges: Float[Tensor, " n"]) -> Float[Tensor, "h t n-1"]:
        """What lies between one edge and the next."""
        if self.kind == "gaussian":
            return Normal(self.m, self.v.sqrt()).cdf(edges).diff(dim=-1)
        a = self._a()
        u = torch.clamp(edges - self.m, -a, a)
        return ((a**2 * u - u**3 / 3) / (2 * self.v)).diff(dim=-1)

    def _a(self) -> Float[Tensor, "h t 1"]:
        return (1.5 * self.v) ** (1 / 3)


def sticky(reads: Density, level: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The points of [0, 1] with the shares `level` of all reads, as a histogram, below them."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=level.dtype, device=level.device)
    mass = Density(reads.kind, reads.m.detach(), reads.v.detach()).mass(edges).sum((0, 1))
    end = (GRAIN * mass.cumsum(0) / mass.sum()).round() / GRAIN
    bin = (end <= level[:, None]).sum(1)
    mass = end.diff(prepend=torch.zeros_like(end[:1]))
    return (bin + 1 - (end - level[:, None]).gather(1, bin[:, None])[:, 0] / mass[bin]) / BINS
