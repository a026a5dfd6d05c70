"""Where queries read the infinity-former's signal, and what a density over it takes of Gaussian bumps.

A query places a density p over t, with a location m and a scale v of its own, and takes the expectation of
psi_j(t) = N(t; mu_j, s_j^2) in closed form. Of two densities:

    gaussian    p(t) = N(t; m, v)                       E[psi_j] = N(m; mu_j, v + s_j^2)
    sparsemax   p(t) = [a^2 - (t - m)^2]_+ / (2 v)      a^3 = 3/2 v, so that its mass is one

The second is continuous sparsemax of the same scores -(t - m)^2 / (2 v) of which the first is the softmax:
it looks nowhere else than between m - a and m + a. With x = |m - mu_j| and z = (x -+ a) / s_j, integration by
parts gives, phi and Phi being the standard normal density and its integral,

    2 v E[psi_j] = (a^2 - x^2 - s_j^2) (Phi(z_2) - Phi(z_1)) + s_j ((a - x) phi(z_2) + (a + x) phi(z_1))

The mass that a density has outside [0, 1] counts too, as in the paper.

Martins, Farinhas, Treviso, Niculae, Aguiar, Figueiredo: Sparse and Continuous Attention Mechanisms. NeurIPS
2020, arXiv:2006.07214.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

BINS = 128  # of the histogram of reads; authors' code
UNIT = 2.0**-32  # of mass in a histogram; sums over a million reads, times GRAIN, still fit into int64
GRAIN = 8 * BINS  # a flat histogram stays flat, and 1 / GRAIN is half the mass around one of 512 points

# E[psi] for the narrow bumps, and for the wide ones: height and shape apart, because the height can wait
# until the bumps have been summed
Bumps = list[tuple[Float[Tensor, "*t 1"], Float[Tensor, "*t half"]]]


class Gaussian(NamedTuple):
    mean: Float[Tensor, "*t"]
    variance: Float[Tensor, "*t"]

    def bumps(self, centres: Float[Tensor, " half"], widths: tuple[float, float]) -> Bumps:
        """E[psi], psi itself where the variance is zero."""
        square = (self.mean[..., None] - centres) ** 2
        variances = [self.variance[..., None] + width**2 for width in widths]
        shapes = [exp_or_zero(square * (-0.5 / both)) for both in variances]
        return [((2 * math.pi * both) ** -0.5, shape) for both, shape in zip(variances, shapes, strict=True)]

    def balance(self, t: Float[Tensor, " edges"]) -> Float[Tensor, "*t edges"]:
        """The mass below `t`, less that above."""
        return ((t - self.mean[..., None]) / (2 * self.variance[..., None]).sqrt()).erf()


class Parabola(NamedTuple):
    """What continuous sparsemax gives for the scores of a Gaussian; its own variance is a^2 / 5."""

    mean: Float[Tensor, "*t"]
    variance: Float[Tensor, "*t"]

    def reach(self) -> Float[Tensor, "*t 1"]:
        """a: how far from the mean anything is read."""
        return (1.5 * self.variance[..., None]) ** (1 / 3)

    def bumps(self, centres: Float[Tensor, " half"], widths: tuple[float, float]) -> Bumps:
        """E[psi]."""
        a, x = self.reach(), (self.mean[..., None] - centres).abs()
        least, height = negligible(x), 0.5 / self.variance[..., None]
        shapes = []
        for s in widths:
            z_1, z_2 = (x - a) / s, (x + a) / s
            mass = ((z_1 / math.sqrt(2)).erfc() - (z_2 / math.sqrt(2)).erfc()) / 2
            ends = (a - x) * standard_normal(z_2) + (a + x) * standard_normal(z_1)
            shapes.append(F.threshold((a**2 - x**2 - s**2) * mass + s * ends, least, 0.0))
        return [(height, shape) for shape in shapes]

    def balance(self, t: Float[Tensor, " edges"]) -> Float[Tensor, "*t edges"]:
        """The mass below `t`, less that above."""
        w = ((t - self.mean[..., None]) / self.reach()).clamp(-1, 1)
        return (3 * w - w**3) / 2


DENSITIES = {"gaussian": Gaussian, "sparsemax": Parabola}
Density = Gaussian | Parabola


def standard_normal(z: Tensor) -> Tensor:
    return (-0.5 * z**2).exp() / math.sqrt(2 * math.pi)


def expectation(
    density: Density, centres: Float[Tensor, " half"], widths: tuple[float, float]
) -> Float[Tensor, "*t n"]:
    """E[psi] for all bumps, narrow ones first."""
    return torch.cat([height * shape for height, shape in density.bumps(centres, widths)], -1)


class Sticky:
    """The points at which the past is read to be written anew: quantiles of a histogram of earlier reads."""

    def __init__(self, samples: int, *, like: Float[Tensor, "b h f n"]) -> None:
        self.edges = torch.linspace(0, 1, BINS + 1, dtype=like.dtype, device=like.device)
        self.flat = torch.arange(BINS + 1, device=like.device)
        self.even = middles(samples, like=like)
        self.level = (self.even * GRAIN).expand(len(like), -1).contiguous()

    def mass_below(self, where: Density, *, real: Bool[Tensor, "b t"] | None) -> Int[Tensor, "b edges"]:
        """What is read of [0, 1] up to each edge, summed over heads and the `real` queries, in UNITs.

        Whole numbers add up to the same in any order, and so for any chunks. They carry no gradient.
        """
        with torch.no_grad():
            units = (where.balance(self.edges) * (0.5 / UNIT)).round()
            if real is not None:
                units = units.masked_fill(~real[:, None, :, None], 0)
            below = units.sum((1, 2), dtype=torch.int64)
        return below - below[:, :1]

    def points(self, below: Int[Tensor, "b edges"]) -> Float[Tensor, "b m"]:
        """Those that cut the mass of each histogram evenly; evenly spread where it is all zero.

        The mass up to each edge is rounded to 1 / GRAIN of all, so that a rounding error in a read moves no
        point. The signal is steep: a point moved by 1e-7 changes the next write by 1e-5, and its reads
        likewise.
        """
        below = torch.where(below[:, -1:] == 0, self.flat, below)
        total = below[:, -1:]
        grains = (torch.add(total // 2, below, alpha=GRAIN) // total).to(self.level.dtype)
        bin = torch.searchsorted(grains, self.level, right=True) - 1
        start, end = grains.gather(1, bin), grains[:, 1:].gather(1, bin)
        return (bin + (self.level - start) / (end - start)) / BINS


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


def exp_or_zero(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The exponential, with zeros for what is negligible."""
    least = negligible(x)
    lowest = math.log(least) - 1e-3  # torch's `exp` is slow where it underflows
    return F.threshold(x.clamp(min=lowest).exp(), least, 0.0)


def flush_negligible(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`x` with zeros for what is negligible."""
    return x.masked_fill(x.abs() < negligible(x), 0)


def middles(count: int, *, like: Tensor) -> Float[Tensor, " {count}"]:
    """The middles of `count` equal parts of [0, 1]."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count
