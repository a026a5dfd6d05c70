"""Laws of the feature maps that followed Performer: Taylor, Hedgehog, DPFP and FAVOR++."""

import math
import re

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.features.directions import Projection
from subquad.features.favor import Favor
from subquad.features.optimal import OptimalFavor, optimal
from subquad.features.taylor import Taylor
from subquad.mechanisms.dpfp import DpfpAttention
from subquad.mechanisms.favor_plus_plus import FavorPlusPlus
from subquad.mechanisms.hedgehog import HedgehogAttention
from subquad.mechanisms.linear import LinearAttention
from subquad.mechanisms.taylor import TaylorAttention

HEAD_DIM = 6
DIMS = Dims(heads=2, head_dim=HEAD_DIM)
DRAWS = 300


def tokens(length, *, width=HEAD_DIM, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(1, 2, length, width, dtype=torch.float64, generator=generator)


# Taylor


def test_taylor_features_have_the_series_as_their_dot_product():
    q, k = tokens(9), tokens(7, seed=1)
    phi = Taylor(HEAD_DIM)
    s = q @ k.mT / HEAD_DIM**0.5
    assert_close(phi(q) @ phi(k).mT, 1 + s + s**2 / 2)
    assert phi(q).shape[-1] == (HEAD_DIM + 1) * (HEAD_DIM + 2) / 2


@pytest.mark.parametrize("causal", [True, False])
def test_taylor_attention_is_the_dense_formula(causal):
    q, k, v = tokens(70, width=5), tokens(70, width=5, seed=1), tokens(70, seed=2)
    s = q @ k.mT / 5**0.5
    weights = 1 + s + s**2 / 2
    if causal:
        weights = weights.tril()
    expected = weights @ v / weights.sum(-1, keepdim=True)
    assert_close(TaylorAttention(DIMS, causal=causal, width=5)(q, k, v), expected)


def test_the_error_against_the_exponential_is_of_third_order():
    q, k = tokens(1), tokens(1, seed=1)
    phi = Taylor(HEAD_DIM)
    for small in (1e-1, 1e-2):
        s = (small * q * k).sum(-1) / HEAD_DIM**0.5
        error = s.exp() - (phi(small * q) * phi(k)).sum(-1)
        assert_close(error / s**3, torch.full_like(s, 1 / 6), rtol=2 * small, atol=0)


# Hedgehog


def test_hedgehog_starts_from_exponentials_of_the_coordinates():
    x = tokens(5)
    phi = HedgehogAttention(DIMS, causal=True).double().features
    assert_close(phi(x), torch.cat([x.exp(), (-x).exp()], -1))


def test_hedgehog_weights_grow_with_a_key_along_its_query():
    q, lengths = tokens(1), torch.linspace(0, 3, 20, dtype=torch.float64)
    phi = HedgehogAttention(DIMS, causal=False).double().features
    weights = (phi(q) @ phi(q * lengths[:, None]).mT)[0, :, 0]
    assert (weights.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("normalise", [True, False])
def test_hedgehog_weights_are_spikier_than_those_of_linear_attention(normalise):
    q, k = tokens(50, scale=2.0), tokens(50, seed=1, scale=2.0)
    spiky, smooth = (
        below_uniform(mechanism.double().features, q, k)
        for mechanism in (
            HedgehogAttention(DIMS, causal=False, normalise=normalise),
            LinearAttention(DIMS, causal=False),
        )
    )
    assert spiky > 2 * smooth


def below_uniform(phi, q, k):
    """How far the entropy of the weights is below that of equal ones."""
    weights = phi(q) @ phi(k).mT
    weights = weights / weights.sum(-1, keepdim=True)
    return math.log(k.shape[2]) + torch.xlogy(weights, weights).sum(-1).mean()


def test_normalised_hedgehog_features_sum_to_one_whatever_the_norm():
    phi = HedgehogAttention(DIMS, causal=True, normalise=True).double().features
    assert_close(phi(tokens(9, scale=20.0)).sum(-1), torch.ones(1, 2, 9, dtype=torch.float64))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{}, {"normalise": True}, {"halves": True}])
def test_hedgehog_survives_large_queries_and_keys_in_float32(causal, options):
    q, k, v = tokens(70, scale=10.0), tokens(70, seed=1, scale=10.0), tokens(70, seed=2)
    mechanism = HedgehogAttention(DIMS, causal=causal, **options)
    out = mechanism(q.float(), k.float(), v.float())
    assert out.isfinite().all()
    assert out.abs().amax() <= v.abs().amax() * 1.001  # an average of values
    assert out.any(-1).all()


@pytest.mark.parametrize("causal", [True, False])
def test_hedgehog_in_halves_has_the_features_of_lolcats(causal):
    q, k, v = tokens(30), tokens(30, seed=1), tokens(30, seed=2)
    mechanism = HedgehogAttention(DIMS, causal=causal, halves=True).double()
    phi_q, phi_k = (torch.cat([x.softmax(-1), (-x).softmax(-1)], -1) for x in (q, k))
    weights = phi_q @ phi_k.mT
    weights = weights.tril() if causal else weights
    assert_close(mechanism(q, k, v), weights @ v / weights.sum(-1, keepdim=True))


# DPFP


def test_dpfp_features_are_products_of_neighbours_in_a_ring():
    x = tokens(3)
    phi = DpfpAttention(DIMS, causal=True, nu=2).features
    ring = torch.cat([x, -x], -1).clamp(min=0)
    expected = [
        ring[..., i] * ring[..., (i + j) % (2 * HEAD_DIM)] for j in (1, 2) for i in range(2 * HEAD_DIM)
    ]
    assert_close(phi(x), torch.stack(expected, -1))


def test_dpfp_keys_of_opposite_signs_do_not_disturb_each_other():
    x = tokens(20)
    phi = DpfpAttention(DIMS, causal=True, nu=2 * HEAD_DIM - 1).features
    assert (phi(x) * phi(x)).sum(-1).min() > 0
    assert not (phi(x) * phi(-x)).sum(-1).any()


@pytest.mark.parametrize("causal", [True, False])
def test_a_dpfp_query_that_shares_no_feature_gives_zeros_with_finite_gradients(causal):
    q, v = tokens(9).abs().requires_grad_(), tokens(9, seed=1)
    k = -q
    out = DpfpAttention(DIMS, causal=causal)(q, k, v)
    assert not out.any()
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()


# FAVOR++


def pair(scale):
    return tokens(1, scale=scale), tokens(1, seed=1, scale=scale)


def right_spread(q, k):
    """Of head 0, the one that the tests of FAVOR++ look at."""
    return ((q + k)[0, 0].square().mean()).item()


def estimates(q, k, *, spread, orthogonal=False, features=16):
    """The kernel of head 0 estimated by independent draws of the features, over its true value."""
    generator = torch.Generator().manual_seed(0)
    project = Projection(HEAD_DIM, rows=features, orthogonal=orthogonal, generator=generator)
    phi, found = OptimalFavor(2, project=project, spread=spread).double(), []
    for _ in range(DRAWS):
        phi.redraw(generator=generator)
        found.append((phi(q) * phi(k)).sum(-1)[0, 0])
    return torch.stack(found) / ((q * k)[0, 0].sum() / HEAD_DIM**0.5).exp()


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 20.0])
def test_the_kernel_is_estimated_without_bias_whatever_the_spread(spread, orthogonal):
    found = estimates(*pair(0.7), spread=spread, orthogonal=orthogonal)
    assert (found.mean() - 1).abs() < 4 * found.std() / DRAWS**0.5


def test_no_spread_is_favor_plus_to_the_letter():
    project = Projection(HEAD_DIM, rows=16, generator=torch.Generator().manual_seed(0))
    x = tokens(9)
    theirs, ours = Favor(project).double(), OptimalFavor(2, project=project, spread=0.0).double()
    assert_close(ours(x), theirs(x))
    assert_close(ours.log_keys(x), theirs.log_keys(x))


def test_the_right_spread_errs_less_than_favor_plus():
    q, k = pair(1.0)
    plus_plus, plus = (estimates(q, k, spread=spread).std() for spread in (right_spread(q, k), 0.0))
    assert plus_plus < 0.8 * plus


def test_the_closed_form_makes_the_second_moment_least():
    """Against the moment itself, log E[(phi(q) . phi(k))^2] of one feature, at many A."""
    q, k = pair(1.3)
    L = ((q + k)[0, 0] * HEAD_DIM**-0.25).square().sum()

    def moment(A):
        # E exp(a |w|^2 + b w . z) = (1 - 2 a)^(-d/2) exp(b^2 |z|^2 / (2 (1 - 2 a))), and D^4 = (1 - 4 A)^d
        a, b = 4 * A, 2 * (1 - 4 * A).sqrt()
        return HEAD_DIM * ((1 - 4 * A).log() - (1 - 2 * a).log() / 2) + b**2 * L / (2 * (1 - 2 * a))

    best = optimal(torch.full((1, 1, 1), right_spread(q, k), dtype=torch.float64), HEAD_DIM)
    assert (moment(best) <= moment(torch.linspace(-3, 0.12, 2000, dtype=torch.float64))).all()


def test_adapting_takes_each_heads_average_over_all_pairs():
    mechanism = FavorPlusPlus(DIMS, causal=True, features=16).double()
    head = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    q, k = head * tokens(5), head * tokens(7, seed=1) + 0.5
    mechanism.adapt(q, k)
    pairs = (q[..., :, None, :] + k[..., None, :, :]).square().mean(dim=(0, 2, 3, 4))
    assert_close(mechanism.state_dict()["features.spread"].flatten(), pairs)


def test_adapting_to_nothing_is_refused():
    mechanism = FavorPlusPlus(DIMS, causal=True, features=16)
    with pytest.raises(ValueError, match="a sample without tokens"):
        mechanism.adapt(tokens(0), tokens(5))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (TaylorAttention, {"width": 0}, "'taylor': width must be at least 1, not 0"),
        (
            HedgehogAttention,
            {"normalise": True, "halves": True},
            "'hedgehog': normalise=True and halves=True exclude each other",
        ),
        (DpfpAttention, {"nu": 0}, "'dpfp': nu must be from 1 to 11"),
        (DpfpAttention, {"nu": 12}, "'dpfp': nu must be from 1 to 11"),
        (FavorPlusPlus, {"features": 0}, "'favor-plus-plus': features must be at least 1, not 0"),
        (FavorPlusPlus, {"redraw_every": -1}, "'favor-plus-plus': redraw_every must be a number of steps"),
        (FavorPlusPlus, {"spread": -1.0}, "'favor-plus-plus': spread must be zero or a positive number"),
    ],
)
def test_an_impossible_option_is_refused_with_what_is_possible(cls, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cls(DIMS, causal=True, **options)
