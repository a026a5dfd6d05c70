"""What densities take of Gaussian bumps, and where they lie, against quadrature."""

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from subquad.memories.reads import DENSITIES, UNIT, Parabola, Sticky, expectation

KINDS = pytest.mark.parametrize("kind", DENSITIES)
WIDTHS = (0.005, 0.2)
CENTRES = torch.linspace(0, 1, 4, dtype=torch.float64)
MEAN = torch.tensor([0.0, 0.1, 1 / 3, 0.5, 0.97], dtype=torch.float64)
VARIANCE = torch.tensor([0.3, 1e-4, 1e-6, 0.01, 0.002], dtype=torch.float64)


def density(kind, t):
    """At `t`, for each of the reads of MEAN and VARIANCE."""
    if kind == "gaussian":
        return Normal(MEAN, VARIANCE.sqrt()).log_prob(t).exp()
    tau = -((3 / (2 * VARIANCE.sqrt())) ** (2 / 3)) / 2  # as the paper on continuous sparsemax has it
    return (-((t - MEAN) ** 2) / (2 * VARIANCE) - tau).clamp(min=0)


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@KINDS
def test_the_expectation_of_a_bump_is_its_integral_under_the_density(kind):
    t = torch.linspace(-5, 6, 1_100_001, dtype=torch.float64)[:, None]
    bumps = [Normal(centre, width).log_prob(t).exp() for width in WIDTHS for centre in CENTRES]
    integrals = [torch.trapezoid(density(kind, t) * bump, t, dim=0) for bump in bumps]
    found = expectation(DENSITIES[kind](MEAN, VARIANCE), CENTRES, WIDTHS)
    assert_close(found, torch.stack(integrals, 1), rtol=1e-6, atol=1e-6)


@KINDS
def test_single_precision_keeps_the_expectation_to_a_few_roundings_of_its_peak(kind):
    kind = DENSITIES[kind]
    exact = expectation(kind(MEAN, VARIANCE), CENTRES, WIDTHS)
    found = expectation(kind(MEAN.float(), VARIANCE.float()), CENTRES.float(), WIDTHS)
    near = expectation(kind(MEAN.float().double(), VARIANCE), CENTRES, WIDTHS)  # the mean is rounded as well
    assert (found - near).abs().max() < 1e-3 * exact.max()


@KINDS
def test_gradients_are_those_of_the_expectation(kind):
    def of(mean, variance):
        return expectation(DENSITIES[kind](mean, variance), CENTRES, (0.05, 0.2))

    variance = VARIANCE.clamp(min=1e-3).requires_grad_()
    assert torch.autograd.gradcheck(of, ((MEAN + 0.01).requires_grad_(), variance), eps=1e-7)


@KINDS
def test_the_histogram_holds_the_mass_of_real_reads_and_of_no_others(kind):
    mean, variance = normal(2, 2, 6, seed=0).sigmoid(), normal(2, 2, 6, seed=1).exp() / 50
    real = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    sticky = Sticky(1, like=mean[..., None])
    found = sticky.mass_below(DENSITIES[kind](mean, variance), real=real).diff(dim=1) * UNIT
    edges = torch.linspace(0, 1, 129, dtype=torch.float64)
    if kind == "gaussian":
        below = Normal(mean[..., None], variance.sqrt()[..., None]).cdf(edges)
    else:
        a, m = (1.5 * variance[..., None]) ** (1 / 3), mean[..., None]
        u = torch.minimum(torch.maximum(edges - m, -a), a)
        below = (a**2 * u - u**3 / 3) / (2 * variance[..., None])
    expected = below.diff(dim=-1)[:, :, :4].sum((1, 2)) * torch.tensor([[1.0], [0.0]])
    assert_close(found, expected, rtol=0, atol=1e-8, check_dtype=False)


def test_a_parabola_has_all_its_mass_within_its_reach():
    read = Parabola(MEAN, VARIANCE)
    for side in (-1, 1):
        ends = read.balance(MEAN + side * read.reach()[:, 0]).diagonal()
        assert_close(ends, torch.full_like(MEAN, side))


@KINDS
def test_only_a_parabola_reads_nothing_of_bumps_beyond_its_reach(kind):
    far = torch.tensor([0.0, 0.9], dtype=torch.float64)  # from a read of a half with a variance of 0.01
    found = expectation(DENSITIES[kind](MEAN[3:4], VARIANCE[3:4]), far, (0.005, 0.01))
    assert (found < 1e-9).all() == (kind == "sparsemax")
