"""Laws of the Performer: its kinds of features, its directions, and what it must survive.

What holds on average is in `test_favor_statistics.py`.
"""

import math
import re

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from variants import variant
from weights import weights

from subquad import Dims
from subquad.features.directions import Projection, gaussian, orthogonal_gaussian
from subquad.features.favor import Favor, Hyperbolic
from subquad.mechanisms.performer import ESTIMATES, MAPS, Performer
from subquad.ops.shared.generators import seeded
from subquad.testing import contract

D = 8
ONE_HEAD = Dims(heads=1, head_dim=D)

LIMIT = {"features": 16384}
VARIANTS = {
    "hyperbolic": variant(Performer, map="hyperbolic", limit=LIMIT),
    "trigonometric": variant(Performer, map="trigonometric", limit=LIMIT),
    **{name: variant(Performer, map=name) for name in ("relu", "gelu", "exp")},
    "relu of Long Range Arena": variant(Performer, map="relu", projection=False, rescale=False, features=256),
    "exp without projection": variant(Performer, map="exp", projection=False, features=256),
    "normalised": variant(Performer, normalise=True),
    "normalised trigonometric": variant(Performer, map="trigonometric", normalise=True),
    "independent, of fixed lengths": variant(Performer, orthogonal=False, lengths="fixed"),
}
CASES = [
    (name, check)
    for name, cls in VARIANTS.items()
    for check in contract(cls)
    if not hasattr(check, "slow")
    # weights of both signs: one query in thousands meets a sum near zero, where float32 is not enough
    and not (name in {"trigonometric", "gelu"} and check.__name__ == "check_half_precision")
]


def label(value):
    return value if isinstance(value, str) else value.__name__.removeprefix("check_")


@pytest.mark.parametrize(("name", "check"), CASES, ids=label)
def test_every_kind_of_features_keeps_the_contract(name, check):
    check(VARIANTS[name])


def tokens(*widths, length=20, heads=1, scale=1.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(1, heads, length, w, dtype=torch.float64, generator=generator) for w in widths
    ]


def made(dims=ONE_HEAD, *, causal=False, **options):
    return Performer(dims, causal=causal, **options).double()


def log_kernel(phi, q, k):
    return (phi.log_queries(q)[..., None, :] + phi.log_keys(k)[:, :, None]).logsumexp(-1)


def directions(performer):
    return performer.state_dict()["features.project.W"]


def test_hyperbolic_features_are_positive_ones_for_both_signs_of_the_directions():
    q, k = tokens(D, D)
    project = Projection(D, rows=16, generator=seeded(0)).double()
    plus, minus, both = Favor(project), Favor(project), Hyperbolic(project)
    hyperbolic = both(q) @ both(k).mT
    positive = plus(q) @ plus(k).mT
    project.W.neg_()
    assert_close(hyperbolic, (positive + minus(q) @ minus(k).mT) / 2)


def test_a_negative_sum_of_trigonometric_weights_is_not_clamped():
    performer = made(map="trigonometric", features=2)
    q, k, v = tokens(D, D, D, scale=2)
    phi = performer.features
    weights = phi(q) @ phi(k).mT
    sums = weights.sum(-1, keepdim=True)
    assert (sums < 0).any()
    assert_close(performer(q, k, v), weights @ v / sums)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 1, 12])
@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "exp"])
def test_float32_survives_any_norm(kind, causal, scale):
    """Against sums in log space of the same features in float64."""
    performer = Performer(Dims(heads=2, head_dim=64), causal=causal, features=64, map=kind)
    q, k = tokens(64, 64, length=100, heads=2, scale=scale)
    (v,) = tokens(64, length=100, heads=2, seed=2)
    out = performer(q.float(), k.float(), v.float())
    kernel = log_kernel(performer.double().features, q, k)
    if causal:
        kernel = kernel.masked_fill(torch.ones(100, 100).triu(1).bool(), -torch.inf)
    assert_close(out, (kernel.softmax(-1) @ v).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", MAPS)
def test_half_precision_stays_finite_at_norms_whose_squares_overflow(kind, causal):
    performer = Performer(ONE_HEAD, causal=causal, features=16, map=kind).half()
    q, k = (x.half() for x in tokens(D, D, length=100, scale=300))
    (v,) = tokens(D, length=100, seed=2)
    assert performer(q, k, v.half()).isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
def test_half_precision_rounds_inputs_and_outputs_and_no_exponents(causal):
    performer = Performer(ONE_HEAD, causal=causal, features=16).half()
    inputs = [x.half() for x in tokens(D, D, D, scale=2)]
    out = performer(*inputs)
    exact = performer.double()(*(x.double() for x in inputs))
    assert_close(out.double(), exact, rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_no_epsilon_lifts_a_small_weight(causal):
    """Added to features, or inside the exponent, it would turn a weight of 1e-22 into one of 1e-4."""
    performer = made(causal=causal, features=16)
    q = torch.ones(1, 1, 2, D, dtype=torch.float64)
    k = torch.stack([10 * q[0, 0, 0], 0 * q[0, 0, 0]])[None, None]
    v = torch.tensor([0.0, 1.0], dtype=torch.float64)[None, None, :, None].expand(-1, -1, -1, D)
    kernel = log_kernel(performer.features, q, k)[0, 0, -1]
    low = kernel.argmin()
    assert kernel.max() - kernel.min() > 40
    found = performer(q, k, (v - v[:, :, 1 - low]).abs())[0, 0, -1, 0]
    assert_close(found, (kernel.min() - kernel.max()).exp())


def test_the_shift_is_the_largest_exponent_and_not_the_largest_norm():
    """A shift by max |k|^2 / 2 would leave features of exp(-5000), that is zeros, in float32."""
    performer = Performer(ONE_HEAD, causal=False, features=16)
    k = torch.zeros(1, 1, 2, D)
    k[..., 0] = torch.tensor([100.0, 100.1])
    found = weights(performer, torch.zeros(1, 1, 3, D), k, width=D)
    assert_close(found.sum(-1), torch.ones(1, 1, 3))


def test_normalised_attention_sees_directions_and_no_norms():
    performer = made(features=64, normalise=True)
    q, k, v = tokens(D, D, D)
    assert_close(performer(7 * q, 1e3 * k, v), performer(q, k, v))


def test_normalised_attention_tends_to_softmax_of_cosines():
    performer = made(features=16384, normalise=True)
    q, k, v = tokens(D, D, D)
    cosines = F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)
    exact = cosines.softmax(-1) @ v
    uniform = v.mean(2, keepdim=True)
    assert (performer(q, k, v) - exact).norm() < 0.1 * (uniform - exact).norm()


def test_a_query_or_key_of_zero_is_normalised_with_a_finite_gradient():
    performer = Performer(ONE_HEAD, causal=True, features=16, normalise=True)
    inputs = [torch.zeros(1, 1, 3, D, requires_grad=True) for _ in range(3)]
    for gradient in torch.autograd.grad(performer(*inputs).sum(), inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ESTIMATES)
def test_the_estimated_error_grows_with_norms_and_normalising_cures_it(kind):
    dims = Dims(heads=2, head_dim=16)
    plain, cured = (
        Performer(dims, causal=True, features=256, map=kind, normalise=choice) for choice in (False, True)
    )
    found = []
    for scale in (0.25, 1.0, 3.0):
        q, k = tokens(16, 16, length=300, heads=2, scale=scale)
        found.append(plain.estimate_error(q, k))
        assert (cured.estimate_error(q, k) < 0.3).all()
    small, middle, large = found
    assert (small < 0.1).all()
    assert (middle > 3 * small).all()
    assert (large > 0.9).all()


def test_the_estimated_error_is_that_of_the_attention_weights():
    performer = made(Dims(heads=3, head_dim=D), causal=False, features=16)
    q, k = tokens(D, D, length=12, heads=3)
    estimated = weights(performer.definition, q, k, width=D)
    exact = (q @ k.mT / D**0.5).softmax(-1)
    expected = [(estimated[0, h] - exact[0, h]).norm() / exact[0, h].norm() for h in range(3)]
    assert_close(performer.estimate_error(q, k), torch.stack(expected))


def test_the_error_of_other_heads_is_not_estimated():
    q, k = tokens(D, D, length=12, heads=3)
    with pytest.raises(ValueError, match="'performer' got q of shape"):
        made(Dims(heads=2, head_dim=D), causal=False, features=16).estimate_error(q, k)


def test_the_estimated_error_does_not_see_padding():
    performer = made(causal=True, features=16)
    q, k = tokens(D, D, length=12)
    valid = torch.arange(12)[None] % 3 != 1
    expected = performer.estimate_error(q[:, :, valid[0]], k[:, :, valid[0]])
    q, k = (x.masked_fill(~valid[:, None, :, None], math.nan) for x in (q, k))
    assert_close(performer.estimate_error(q, k, valid=valid), expected)


def test_the_error_is_estimated_from_a_sample_that_does_not_grow_with_length():
    performer = Performer(ONE_HEAD, causal=True, features=64)
    q, k = tokens(D, D, length=3000, scale=0.5)
    whole, sample = performer.estimate_error(q, k, at_most=3000), performer.estimate_error(q, k)
    assert_close(sample, whole, rtol=0.3, atol=0)
    assert_close(performer.estimate_error(q[:, :, :5], k), sample, rtol=0.5, atol=0)


def test_a_kernel_that_is_not_softmax_has_no_error_to_tell():
    q, k = tokens(D, D)
    message = (
        "'performer': map='relu' is a kernel of its own and estimates no softmax attention; those that do"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Performer(ONE_HEAD, causal=True, map="relu").estimate_error(q, k)


def test_rows_are_orthogonal_within_blocks():
    W = orthogonal_gaussian(2 * D + 3, D, generator=seeded(0))
    for block in W.split(D):
        rows = F.normalize(block, dim=1)
        assert_close(rows @ rows.mT, torch.eye(len(rows), dtype=W.dtype))


def test_independent_rows_are_not_orthogonal():
    W = gaussian(D, D, generator=seeded(0))
    assert (W @ W.mT - torch.diag((W @ W.mT).diagonal())).abs().max() > 0.1


@pytest.mark.parametrize("orthogonal", [True, False])
def test_fixed_lengths_are_all_the_root_of_the_width(orthogonal):
    project = Projection(D, rows=20, generator=seeded(0), orthogonal=orthogonal, lengths="fixed")
    assert_close(project.W.norm(dim=1), torch.full((20,), D**0.5))


def test_a_redraw_can_be_repeated():
    first, second = (Performer(Dims(heads=1, head_dim=4), causal=True) for _ in range(2))
    first.redraw(generator=torch.Generator().manual_seed(9))
    assert not torch.equal(directions(first), directions(second))
    second.redraw(generator=torch.Generator().manual_seed(9))
    assert torch.equal(directions(first), directions(second))


def test_seeds_and_layers_draw_different_directions():
    drawn = [
        directions(Performer(Dims(heads=1, head_dim=4, layer=layer), causal=True, seed=seed))
        for seed in (0, 1, 2)
        for layer in (0, 1, 2)
    ]
    assert len({tuple(W.flatten().tolist()) for W in drawn}) == len(drawn)
    again = Performer(Dims(heads=1, head_dim=4, layer=2), causal=False, seed=2)
    assert torch.equal(directions(again), drawn[-1])


@pytest.mark.parametrize("kind", MAPS)
def test_features_is_how_many_features_there_are(kind):
    performer = made(causal=True, features=10, map=kind)
    (x,) = tokens(D)
    assert performer.features(x).shape[-1] == 10


@pytest.mark.parametrize("causal", [True, False])
def test_the_relu_of_long_range_arena_weighs_by_relu_of_queries_and_keys_themselves(causal):
    q, k, v = tokens(D, D, D)
    weights = (q.clamp(min=0) + 1e-3) @ (k.clamp(min=0) + 1e-3).mT
    weights = weights.tril() if causal else weights
    found = made(causal=causal, map="relu", projection=False, rescale=False)(q, k, v)
    assert_close(found, weights @ v / weights.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"map": "cosine"},
            "map must be one of positive, hyperbolic, trigonometric, exp, relu, abs, elu, gelu,",
        ),
        ({"lengths": "short"}, "lengths must be one of chi, fixed, not 'short'"),
        (
            {"map": "hyperbolic", "features": 7},
            "hyperbolic features come in pairs: features must be even, not 7",
        ),
        ({"features": 0}, "features must be at least 1, not 0"),
        ({"epsilon": 0.0}, "epsilon must be a positive number, not 0.0"),
        (
            {"map": "trigonometric", "rescale": False},
            "map='trigonometric' estimates softmax attention, which takes projection=True and rescale=True; "
            "the others are exp, relu, abs, elu, gelu, sigmoid",
        ),
        ({"projection": False}, "map='positive' estimates softmax attention, which takes projection=True"),
        ({"map": "relu", "rescale": False, "normalise": True}, "normalise=True rescales by itself"),
        (
            {"map": "relu", "projection": False, "features": 64, "seed": 1, "redraw_every": 1},
            "projection=False leaves nothing to draw, and has as many features as a head is wide: leave "
            "features, seed, redraw_every at the default",
        ),
        ({"redraw_every": -1}, "redraw_every must be a number of steps, 0 for never, not -1"),
    ],
)
def test_an_impossible_option_is_refused_with_what_is_possible(options, message):
    with pytest.raises(ValueError, match=re.escape(f"'performer': {message}")):
        Performer(ONE_HEAD, causal=True, **options)
