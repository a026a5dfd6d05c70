"""What a learnt spectral density promises on average, and what its two forms are."""

import re
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.features.directions import Projection
from subquad.features.favor import Favor
from subquad.features.spectral import FourierSpectral, Mixture, PositiveSpectral
from subquad.mechanisms.spectral import SpectralAttention
from subquad.ops.shared.generators import seeded
from subquad.testing import contract

HEAD_DIM = 6
DIMS = Dims(heads=2, head_dim=HEAD_DIM)
DRAWS = 300


class FourierSpectralAttention(SpectralAttention):
    """The other form under the same contract."""

    traits = replace(SpectralAttention.traits, tiny={"features": 16, "form": "fourier"})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def density(mechanism) -> Mixture:
    assert isinstance(mechanism.features, FourierSpectral | PositiveSpectral)
    return mechanism.features.mixture


def trained(**options):
    """A mechanism whose mixture has moved from where it starts."""
    mechanism = SpectralAttention(DIMS, causal=False, **options).double()
    with torch.no_grad():
        for parameter in mechanism.parameters():
            drawn = torch.randn(parameter.shape, dtype=torch.float64, generator=generator())
            parameter.copy_(0.4 * drawn)
    return mechanism


def pair(scale=0.7):
    return (
        scale * torch.randn(1, 2, 1, HEAD_DIM, dtype=torch.float64, generator=generator(s)) for s in (1, 2)
    )


def expected(mechanism, q, k, form):
    """The kernel of each head by the density's closed form."""
    mixture = density(mechanism)
    pi, mu, sigma = mixture.logits.softmax(-1), mixture.mean, mixture.log_deviation.exp()
    q, k = (x[0] * HEAD_DIM**-0.25 for x in (q, k))  # h 1 d, against h c d
    if form == "fourier":
        y = q - k
        terms = (mu * y).sum(-1).cos() * (-(sigma * y).square().sum(-1) / 2).exp()
        return (pi * terms).sum(-1) + 1
    z = q + k
    exponent = (mu * z).sum(-1) + (sigma * z).square().sum(-1) / 2 - (q.square() + k.square()).sum(-1)
    return (pi * exponent.exp()).sum(-1)


COSTLY = ("check_flop_growth", "check_memory_growth")  # run for the positive form, on the same sums
CHECKS = [
    check
    for check in contract(FourierSpectralAttention)
    if check.__name__ not in COSTLY and not hasattr(check, "slow")
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_fourier_form_keeps_the_contract(check):
    check(FourierSpectralAttention)


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("form", ["positive", "fourier"])
def test_the_kernel_is_the_characteristic_function_of_the_mixture_on_average(form, orthogonal):
    mechanism, (q, k), source = trained(form=form, features=12, orthogonal=orthogonal), pair(), generator(3)
    estimates = []
    for _ in range(DRAWS):
        mechanism.redraw(generator=source)
        with torch.no_grad():
            estimates.append((mechanism.features(q) * mechanism.features(k)).sum(-1)[0, :, 0])
    found = torch.stack(estimates)
    error = (found.mean(0) - expected(mechanism, q, k, form)).abs()
    assert (error < 4 * found.std(0) / DRAWS**0.5).all()


def test_one_standard_component_is_favor_plus_times_a_gaussian():
    mechanism = SpectralAttention(DIMS, causal=False, components=1, features=16, seed=4).double()
    torch.nn.init.zeros_(density(mechanism).mean)
    projection = Projection(HEAD_DIM, rows=16, orthogonal=False, generator=seeded(4, 0))
    x, _ = pair()
    # FAVOR+ takes half the square from the exponent, for exp(q . k); all of it is for exp(-|q - k|^2 / 2)
    gaussian = (-(x * HEAD_DIM**-0.25).square().sum(-1, keepdim=True) / 2).exp()
    assert_close(mechanism.features(x), Favor(projection).double()(x) * gaussian)


def test_fourier_weights_are_never_below_zero():
    mechanism = trained(form="fourier", features=4)
    q, k = (
        10 * torch.randn(1, 2, 200, HEAD_DIM, dtype=torch.float64, generator=generator(s)) for s in (1, 2)
    )
    weights = mechanism.features(q) @ mechanism.features(k).mT
    assert weights.min() >= 0
    assert weights.min() < 0.1  # and would be, without the last feature


def test_heads_learn_kernels_of_their_own():
    mechanism = trained()
    torch.nn.init.zeros_(density(mechanism).logits)  # so that the Gaussians themselves must differ
    x, _ = pair()
    same = mechanism.features(x[:, :1].expand(-1, 2, -1, -1))
    assert (same[:, 0] - same[:, 1]).abs().max() > 1e-3


def test_a_seed_repeats_the_draws_and_redrawing_changes_them():
    first, second = (SpectralAttention(DIMS, causal=True, seed=3) for _ in range(2))
    draws = [density(mechanism).eps for mechanism in (first, second)]
    assert torch.equal(*draws)
    first.redraw(generator=generator(9))
    assert not torch.equal(*draws)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "cosine"}, "'spectral': form must be one of positive, fourier, not 'cosine'"),
        ({"components": 0}, "'spectral': components must be at least 1, not 0"),
        ({"components": 3}, "'spectral': features must be a multiple of the 3 components, not 256"),
        ({"redraw_every": -1}, "'spectral': redraw_every must be a number of steps, 0 for never, not -1"),
        ({"features": 0}, "'spectral': features must be at least 1, not 0"),
    ],
)
def test_an_impossible_option_is_refused_with_what_is_possible(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SpectralAttention(DIMS, causal=True, **options)
