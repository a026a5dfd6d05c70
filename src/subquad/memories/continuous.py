"""The unbounded long-term memory of the infinity-former: the past as one continuous signal.

A signal over t in [0, 1], from the beginning of the past to its end, is a sum of N Gaussian bumps, whatever
the length of the past:

    X(t) = B^T psi(t),    psi_j(t) = N(t; mu_j, s_j^2)

Writing: L vectors X at t_i = (i - 1/2) / L are fitted by ridge regression, B^T = X^T G, where
G = F^T (F F^T + lambda I)^-1 and F_ji = psi_j(t_i) depend on no data. To write more, the old signal is read
at M points, contracted into [0, tau] and fitted together with the new vectors, which take (tau, 1].

Reading: head by head, a query places a Gaussian density over t and takes its expectation of the signal:

    s = K q / sqrt(d),    m = sigmoid(w_mu . s + b_mu),    v = softplus(w_sigma . s + b_sigma)
    z = V^T E[psi],       E[psi_j] = integral of N(t; m, v) psi_j(t) dt = N(m; mu_j, v + s_j^2)

where K and V are the coefficients of the keys' and of the values' signal. The mass that a density has outside
[0, 1] counts too, as in the paper.

Sticky memories: the M points need not be spread evenly. They lie closest where the past was read most, and
these parts of it keep more room after the contraction.

Martins, Marinho, Martins: infinity-former: Infinite Memory Transformer. ACL 2022, arXiv:2109.00301,
section 3. Departures:
- points are quantiles of the histogram of reads, to the nearest 1/1024 of its mass, and not drawn from it:
  the same input gives the same memory, and a flat histogram gives points spread evenly;
- points and vectors stand in the middle of their share of the interval, in first and later fits alike;
- no zeros are fitted outside [0, 1], as the authors' code does: the signal is not pulled down at its ends;
- b_mu and b_sigma, which the authors' code lacks, let the heads begin side by side and sigma_0 wide.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

BINS = 128  # of the histogram of reads; authors' code
UNIT = 2.0**-32  # of mass in a histogram; sums over a million reads, times GRAIN, still fit into int64
GRAIN = 8 * BINS  # a flat histogram stays flat, and 1 / GRAIN is half the mass around one of 512 points
SMALLEST_VARIANCE = 1e-6  # of a read; authors' code, sorting

Signal = Float[Tensor, "b h c n"]  # the coefficients B^T, head by head


class Gaussian(NamedTuple):
    """Where each query reads."""

    mean: Float[Tensor, "b h t"]
    variance: Float[Tensor, "b h t"]


class ContinuousMemory(nn.Module):
    """Reads and writes signals that the caller keeps. `basis` bumps, half `narrow`, half `wide`.

    The operators G follow from the options. They are not stored: they are computed in float64, again
    whenever the module is loaded or changes its precision or device, and kept in float32 at least.
    """

    centres: Float[Tensor, " half"]  # of the narrow bumps, and of the wide ones
    G_first: Float[Tensor, "l n"]  # fits one segment
    G_later: Float[Tensor, "m+l n"]  # fits the contracted past and one more segment

    def __init__(
        self,
        *,
        heads: int,
        segment: int,
        basis: int,
        narrow: float,
        wide: float,
        ridge: float,
        tau: float,
        samples: int,
        deviation: float,
    ) -> None:
        super().__init__()
        self.segment, self.basis, self.samples = segment, basis, samples
        self.widths, self.ridge, self.tau = (narrow, wide), ridge, tau
        operators = self._operators()
        for name, operator in operators.items():
            self.register_buffer(
                name,
                cut(operator.to(torch.get_default_dtype())).to(torch.get_default_device()),
                persistent=False,
            )
        # Queries and keys of unit variance give logits of unit variance at most.
        spread = 1 / operators["G_later"].norm().item()
        self.w_mu = nn.Parameter(spread * torch.randn(heads, basis))
        self.b_mu = nn.Parameter(middles(heads, like=torch.empty(0)).logit())
        self.w_sigma = nn.Parameter(spread * torch.randn(heads, basis))
        inverse_softplus = deviation**2 + math.log(-math.expm1(-(deviation**2)))
        self.b_sigma = nn.Parameter(torch.full((heads,), inverse_softplus))

    def locate(self, q: Float[Tensor, "b h t d"], K_T: Float[Tensor, "b h d n"]) -> Gaussian:
        """Where the queries read, given the coefficients of the keys' signal."""
        w = torch.stack([self.w_mu, self.w_sigma], -1).to(q.dtype)
        b = torch.stack([self.b_mu, self.b_sigma], -1).to(q.dtype)
        logits = q @ (K_T @ w) / q.shape[-1] ** 0.5 + b[:, None]  # w . K q = K^T w . q
        mean, variance = logits.unbind(-1)
        return Gaussian(mean.sigmoid(), F.softplus(variance).clamp(min=SMALLEST_VARIANCE))

    def read(self, where: Gaussian, V_T: Float[Tensor, "b h e n"]) -> Float[Tensor, "b h t e"]:
        """The expectation of the values' signal."""
        bumps = bump(where.mean, where.variance, self.centres.to(V_T.dtype), self.widths)
        narrow, wide = (
            height * (shape @ half.mT) for (height, shape), half in zip(bumps, V_T.chunk(2, -1), strict=True)
        )
        return narrow + wide

    def evaluate(self, signal: Signal, points: Float[Tensor, "b m"]) -> Float[Tensor, "b h c m"]:
        """The signal at `points`."""
        psi = expectation(points, torch.zeros_like(points), self.centres.to(points.dtype), self.widths)
        return (signal.flatten(1, 2) @ psi.mT).unflatten(1, signal.shape[1:3])

    def first(self, X: Float[Tensor, "b h l c"]) -> Signal:
        """The signal of one segment."""
        return X.mT @ self.G_first.to(X.dtype)

    def later(self, signal: Signal, points: Float[Tensor, "b m"], X: Float[Tensor, "b h l c"]) -> Signal:
        """The signal of the past, contracted as it is at `points`, and of one more segment."""
        return torch.cat([self.evaluate(signal, points), X.mT], -1) @ self.G_later.to(X.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ContinuousMemory":
        super()._apply(fn, recurse)
        self._renew()
        return self

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self._renew()

    def _renew(self) -> None:
        device, dtype = self.w_mu.device, torch.promote_types(self.w_mu.dtype, torch.float32)
        for name, operator in self._operators().items():
            setattr(self, name, cut(operator.to(dtype)).to(device))

    def _operators(self) -> dict[str, Float[Tensor, "..."]]:
        """The buffers by name, in float64 on the CPU."""
        like = torch.empty(0, dtype=torch.float64, device="cpu")
        centres = torch.linspace(0, 1, self.basis // 2, dtype=like.dtype, device=like.device)
        new = middles(self.segment, like=like)
        past_and_new = torch.cat(
            [self.tau * middles(self.samples, like=like), self.tau + (1 - self.tau) * new]
        )
        G_first, G_later = (
            ridge_fit(expectation(t, torch.zeros_like(t), centres, self.widths), self.ridge)
            for t in (new, past_and_new)
        )
        return {"centres": centres, "G_first": G_first, "G_later": G_later}


def bump(
    mean: Float[Tensor, "*t"],
    variance: Float[Tensor, "*t"],
    centres: Float[Tensor, " half"],
    widths: tuple[float, float],
) -> list[tuple[Float[Tensor, "*t 1"], Float[Tensor, "*t half"]]]:
    """E[psi] under N(mean, variance), psi itself where the variance is zero: height and shape by width.

    Apart, because the height can wait until the bumps have been summed.
    """
    square = (mean[..., None] - centres) ** 2
    variances = [variance[..., None] + width**2 for width in widths]
    exponents = [square * (-0.5 / both) for both in variances]
    least = negligible(square)
    lowest = math.log(least) - 1e-3  # torch's `exp` is slow where it underflows
    shapes = [F.threshold(exponent.clamp(min=lowest).exp(), least, 0.0) for exponent in exponents]
    return [((2 * math.pi * both) ** -0.5, shape) for both, shape in zip(variances, shapes, strict=True)]


def expectation(
    mean: Float[Tensor, "*t"],
    variance: Float[Tensor, "*t"],
    centres: Float[Tensor, " half"],
    widths: tuple[float, float],
) -> Float[Tensor, "*t n"]:
    """The same for all bumps, narrow ones first."""
    return torch.cat([height * shape for height, shape in bump(mean, variance, centres, widths)], -1)


def ridge_fit(F_T: Float[Tensor, "l n"], ridge: float) -> Float[Tensor, "l n"]:
    """G, for which B = G^T X has the least |F^T B - X|^2 + ridge |B|^2, by the smaller Gram matrix."""
    l, n = F_T.shape
    gram = F_T @ F_T.mT if l < n else F_T.mT @ F_T
    root = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    return torch.cholesky_solve(F_T, root) if l < n else torch.cholesky_solve(F_T.mT, root).mT


def histogram(where: Gaussian, *, real: Bool[Tensor, "b t"]) -> Int[Tensor, "b bins"]:
    """The mass in each of BINS parts of [0, 1], summed over heads and the `real` queries, in UNITs.

    Whole numbers add up to the same in any order, and so for any chunks. They carry no gradient.
    """
    mean, deviation = where.mean.detach()[..., None], where.variance.detach().sqrt()[..., None]
    edges = torch.linspace(0, 1, BINS + 1, dtype=mean.dtype, device=mean.device)
    below = ((edges - mean) / (deviation * math.sqrt(2))).erf() / 2
    units = (below / UNIT).round().to(torch.int64)
    return units.masked_fill(~real[:, None, :, None], 0).sum((1, 2)).diff(dim=1)


def quantiles(mass: Int[Tensor, "b bins"], count: int, *, like: Tensor) -> Float[Tensor, "b {count}"]:
    """`count` points that cut the mass of each histogram evenly; evenly spread where it is all zero.

    The mass up to each edge is rounded to 1 / GRAIN of all, so that a rounding error in a read moves no
    point. The signal is steep: a point moved by 1e-7 changes the next write by 1e-5, and its reads likewise.
    """
    bins = mass.shape[1]
    mass = mass.masked_fill((mass.sum(1) == 0)[:, None], 1)
    total = mass.sum(1, keepdim=True)
    below = F.pad((mass.cumsum(1) * GRAIN + total // 2) // total, (1, 0)).to(like.dtype) / GRAIN
    level = middles(count, like=like).expand(len(mass), -1).contiguous()
    bin = torch.searchsorted(below, level, right=True) - 1
    start, end = below.gather(1, bin), below.gather(1, bin + 1)
    return (bin + (level - start) / (end - start)) / bins


def divergence(
    variance: Float[Tensor, "b h t"], *, deviation: float, real: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """KL(N(m, v) || N(m, deviation^2)), summed over heads and the `real` queries: it leaves the mean free."""
    ratio = variance / deviation**2
    return ((ratio - ratio.log() - 1) / 2).masked_fill(~real[:, None], 0).sum()


def negligible(x: Tensor) -> float:
    """What is zero beside numbers near one: products of three such are the smallest normal numbers.

    CPUs multiply smaller ones many times slower, and the tails of Gaussians are full of them.
    """
    return torch.finfo(x.dtype).tiny ** (1 / 3)


def cut(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`x` with zeros for what is negligible."""
    return x.masked_fill(x.abs() < negligible(x), 0)


def middles(count: int, *, like: Tensor) -> Float[Tensor, " {count}"]:
    """The middles of `count` equal parts of [0, 1]."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count
