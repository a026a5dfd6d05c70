"""What FAVOR+ promises on average, tested as statistics of many draws.

Vectors are given as x' = x / d^(1/4), the paper's letters, and estimates as multiples of the kernel.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from subquad.features.directions import Projection, gaussian, haar, orthogonal_gaussian
from subquad.features.favor import Favor, Hyperbolic, Trigonometric

D = 8
MAPS = [Favor, Hyperbolic, Trigonometric]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pair(*, length, angle):
    """q' and k' of a given length, with a given angle between them."""
    q, k = torch.zeros(2, 1, 1, 1, D, dtype=torch.float64)
    q[..., 0] = length
    k[..., 0], k[..., 1] = length * math.cos(angle), length * math.sin(angle)
    return q, k


def kernel(q, k):
    return (q * k).sum().exp()


def estimates(phi, q, k, *, rows, draws, orthogonal=False, lengths="chi", seed=0):
    """The kernel estimated with `rows` directions, over its true value, `draws` times."""
    generator = seeded(seed)
    project = Projection(
        D, rows=draws * rows, generator=generator, orthogonal=orthogonal, lengths=lengths
    ).double()
    x = [phi(project)(x * D**0.25) for x in (q, k)]
    terms = (x[0] * x[1]).flatten() * draws * rows
    return terms.unflatten(0, (-1, draws, rows)).sum(0).mean(1) / kernel(q, k)


def mse(phi, q, k, *, rows):
    """Lemma 2 of the paper, over the square of the kernel."""
    together, apart = (q + k).square().sum(), (q - k).square().sum()
    if phi is Trigonometric:
        return together.exp() * kernel(q, k) ** -4 * (1 - (-apart).exp()) ** 2 / (2 * rows)
    positive = together.exp() * (1 - (-together).exp()) / rows
    return positive if phi is Favor else positive * (1 - (-together).exp()) / 2


def measured(phi, q, k, *, rows, **settings):
    return (estimates(phi, q, k, rows=rows, **settings) - 1).square().mean()


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("phi", MAPS)
def test_the_kernel_is_estimated_without_bias(phi, orthogonal):
    q, k = pair(length=0.7, angle=1.3)
    found = estimates(phi, q, k, rows=D, draws=20_000, orthogonal=orthogonal)
    interval = 5 * found.std() / len(found) ** 0.5
    assert (found.mean() - 1).abs() < interval < 0.03


@pytest.mark.parametrize("phi", MAPS)
def test_the_error_falls_as_one_over_the_root_of_the_features(phi):
    q, k = pair(length=0.7, angle=1.3)
    rows = torch.tensor([4.0, 16.0, 64.0, 256.0], dtype=torch.float64)
    errors = torch.stack([measured(phi, q, k, rows=int(m), draws=2000).sqrt() for m in rows])
    x, y = rows.log() - rows.log().mean(), errors.log()
    slope = ((x * y).sum() / x.square().sum()).item()
    assert -0.55 < slope < -0.45


@pytest.mark.parametrize("phi", MAPS)
def test_orthogonal_directions_err_less_than_independent_ones(phi):
    q, k = pair(length=0.7, angle=1.3)
    orthogonal, independent = (
        measured(phi, q, k, rows=D, draws=20_000, orthogonal=choice) for choice in (True, False)
    )
    assert orthogonal < 0.93 * independent


@pytest.mark.parametrize("length", [0.3, 0.5])
@pytest.mark.parametrize("angle", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
def test_errors_by_angle_and_length_are_those_of_lemma_2(angle, length):
    q, k = pair(length=length, angle=angle)
    for phi in MAPS:
        found = measured(phi, q, k, rows=4, draws=40_000)
        assert_close(found, mse(phi, q, k, rows=4), rtol=0.15, atol=1e-12)


@pytest.mark.parametrize(("length", "angle"), [(0.5, 0.8), (0.5, 1.6), (0.5, 2.6), (1.0, 2.2), (1.5, 2.6)])
def test_the_ratio_of_errors_is_that_of_figure_2(length, angle):
    q, k = pair(length=length, angle=angle)
    trigonometric, positive = (measured(phi, q, k, rows=4, draws=40_000) for phi in (Trigonometric, Favor))
    expected = mse(Trigonometric, q, k, rows=4) / mse(Favor, q, k, rows=4)
    assert_close(trigonometric / positive, expected, rtol=0.2, atol=0)


def test_positive_features_win_where_the_kernel_is_small_and_lose_where_it_is_large():
    small, large = pair(length=1.0, angle=2.8), pair(length=1.0, angle=0.3)
    errors = {
        (phi, name): measured(phi, *qk, rows=16, draws=4000)
        for phi in (Favor, Trigonometric)
        for name, qk in (("small", small), ("large", large))
    }
    assert errors[Favor, "small"] < errors[Trigonometric, "small"] / 100
    assert errors[Trigonometric, "large"] < errors[Favor, "large"] / 5


def test_positive_features_are_exact_where_the_key_is_minus_the_query():
    q, k = pair(length=1.0, angle=math.pi)
    assert_close(estimates(Favor, q, k, rows=2, draws=50), torch.ones(50, dtype=torch.float64))


def test_fixed_lengths_trade_a_bias_for_less_variance():
    """SMREG lies below the softmax kernel, and not far (Theorem 1 of the paper)."""
    q, k = pair(length=1.0, angle=0.5)
    chi, fixed = (
        estimates(Favor, q, k, rows=D, draws=50_000, orthogonal=True, lengths=lengths)
        for lengths in ("chi", "fixed")
    )
    assert fixed.std() < 0.8 * chi.std()
    assert 1 - 2 / D ** (1 / 3) < fixed.mean() < 1 - 5 * fixed.std() / len(fixed) ** 0.5


@pytest.mark.parametrize("draw", [gaussian, orthogonal_gaussian])
def test_rows_have_the_moments_of_gaussian_vectors(draw):
    W = draw(40_000, D, generator=seeded(0))
    error = len(W) ** -0.5
    assert W.mean(0).abs().max() < 5 * error
    assert (W.mT @ W / len(W) - torch.eye(D)).abs().max() < 5 * 2**0.5 * error
    squared = W.square().sum(1)  # chi-squared with d degrees of freedom: mean d, variance 2 d
    assert (squared.mean() - D).abs() < 5 * (2 * D) ** 0.5 * error
    assert (squared.var() / (2 * D) - 1).abs() < 0.1


@pytest.mark.parametrize("draw", [gaussian, orthogonal_gaussian])
def test_lengths_do_not_depend_on_directions(draw):
    W = draw(40_000, D, generator=seeded(0))
    lengths = W.norm(dim=1)
    directions = W / lengths[:, None]
    for statistic in (directions[:, 0], directions[:, 0].abs(), directions[:, :3].square().sum(1)):
        correlation = torch.corrcoef(torch.stack([lengths, statistic]))[0, 1]
        assert correlation.abs() < 5 / len(W) ** 0.5


def test_each_row_points_to_either_side_equally_often():
    """Row by row within a block: QR without its signs favours one side."""
    blocks = haar(20_000, 4, generator=seeded(0))
    positive = (blocks > 0).double().mean(0)
    assert (positive - 0.5).abs().max() < 5 * 0.5 / 20_000**0.5


def test_blocks_are_haar_distributed():
    Q = haar(20_000, 4, generator=seeded(0))
    # for Haar matrices the trace has mean 0 and variance 1; QR without its signs has mean below -1
    trace = Q.diagonal(dim1=1, dim2=2).sum(1)
    assert trace.mean().abs() < 5 / 20_000**0.5
    assert (trace.var() - 1).abs() < 0.1
    # every entry has variance 1/4, and entries of different rows and columns are uncorrelated
    assert (Q.square().mean(0) - 0.25).abs().max() < 5 * 0.25 / 20_000**0.5
    assert (Q[:, 0, 0] * Q[:, 1, 1]).mean().abs() < 5 * 0.25 / 20_000**0.5


def test_redrawing_changes_the_directions_and_not_their_law():
    q, k = pair(length=0.7, angle=1.3)
    project = Projection(D, rows=D, generator=seeded(0)).double()
    generator, found, last = seeded(1), [], project.W.clone()
    for _ in range(1000):
        project.redraw(generator=generator)
        assert not torch.equal(project.W, last)
        last = project.W.clone()
        phi = Favor(project)
        found.append((phi(q * D**0.25) * phi(k * D**0.25)).sum() / kernel(q, k))
    found = torch.stack(found)
    assert (found.mean() - 1).abs() < 5 * found.std() / len(found) ** 0.5
    fresh = estimates(Favor, q, k, rows=D, draws=20_000, orthogonal=True)
    assert (found.std() / fresh.std() - 1).abs() < 0.2
