"""How far mechanisms are from softmax attention: laws of the figures, whatever the mechanism."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from subquad import fidelity
from subquad.measure.activations import random_activations
from subquad.measure.fidelity import effective_rank, mechanism_weights
from subquad.measure.layer_fidelity import Activations, layer_fidelities
from subquad.mechanism import Dims
from subquad.mechanisms.linear import LinearAttention
from subquad.registry import build, find
from subquad.stand_in import build_stand_in, require_stand_in, stand_ins

ROWS, HEADS, LENGTH, WIDTH = 2, 2, 24, 8
DIMS = Dims(heads=HEADS, head_dim=WIDTH, max_len=LENGTH)
LIMITS = [name for name in stand_ins(DIMS, causal=False) if find(name).traits.limit]


def normal(*, rows=ROWS, heads=HEADS, length=LENGTH, keys=None, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    lengths = (length, keys or length, keys or length)
    return tuple(
        scale * torch.randn(rows, heads, n, WIDTH, generator=generator, dtype=torch.float64) for n in lengths
    )


def figures(head, *names):
    return [getattr(head, name).mean for name in names]


def numbers(value):
    """All of a result, in order; what is absent counts as -1."""
    if isinstance(value, dict | list | tuple):
        parts = value.values() if isinstance(value, dict) else value
        return [number for part in parts for number in numbers(part)]
    return [] if isinstance(value, str) else [-1.0 if value is None else float(value)]


def assert_same(result, expected):
    assert numbers(asdict(result)) == pytest.approx(numbers(asdict(expected)), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_is_no_way_from_itself(causal):
    result = fidelity("softmax", *normal(scale=2), causal=causal)
    assert (result.draws, result.tokens, result.left_out, result.reason) == (1, ROWS * LENGTH, 0, "")
    assert result.relative_error
    assert result.relative_error.mean < 1e-12
    for head in result.heads:
        error, cosine, kl, lost, negative, mass = figures(
            head, "relative_error", "output_cosine", "kl", "lost", "negative", "mass"
        )
        assert max(error, 1 - cosine, kl, lost, negative, abs(1 - mass)) < 1e-12
        assert head.entropy
        assert math.isclose(head.entropy.mean, head.softmax_entropy)
        assert head.effective_rank
        assert math.isclose(head.effective_rank.mean, head.softmax_effective_rank)


@pytest.mark.parametrize("name", LIMITS)
def test_a_mechanism_at_its_limit_is_near_softmax(name):
    traits = find(name).traits
    result = fidelity(name, *normal(scale=0.5), draws=1, **dict(traits.limit or {}))
    far = fidelity("linear", *normal(scale=0.5)).relative_error
    assert result.relative_error
    assert far
    assert result.relative_error.mean < max(traits.limit_tol, 1e-6)
    assert far.mean > 0.01  # which uniform weights have


@pytest.mark.parametrize("causal", [False, True])
def test_the_error_of_favor_falls_with_its_features(causal):
    few, many = (
        fidelity("performer", *normal(), causal=causal, features=features).heads for features in (16, 4096)
    )
    for worse, better in zip(few, many, strict=True):
        assert all(
            map(float.__gt__, figures(worse, "relative_error", "kl"), figures(better, "relative_error", "kl"))
        )


@pytest.mark.parametrize(
    "name", ["linear", "local:width=4", "nystromformer:landmarks=4", "svd:rank=2", "dpfp"]
)
def test_the_weights_are_what_the_mechanism_multiplies_values_with(name):
    q, k, v = normal(rows=1, length=21, scale=2)  # no multiple of the width: the last columns are fewer
    mechanism = build_stand_in(name, DIMS, causal=False).double().eval()
    weights = mechanism_weights(mechanism, q, k, v)[0]
    torch.testing.assert_close(weights @ v[0], mechanism(q, k, v)[0])
    torch.testing.assert_close(
        weights[:, :, :2], mechanism(q, k, torch.eye(21, WIDTH).expand_as(v).double())[0, :, :, :2]
    )


@pytest.mark.parametrize("causal", [False, True])
def test_softmaxs_weights_are_the_dense_ones(causal):
    q, k, v = normal(rows=1)
    scores = q @ k.mT / WIDTH**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), -math.inf)
    mechanism = build("softmax", DIMS, causal=causal).eval()
    torch.testing.assert_close(mechanism_weights(mechanism, q, k, v)[0], scores.softmax(-1)[0])


def test_uniform_weights_have_the_greatest_entropy_and_the_least_rank():
    q, k, v = normal()
    head = fidelity("softmax", 0 * q, k, v).heads[0]
    assert math.isclose(head.softmax_entropy, math.log(LENGTH))
    assert math.isclose(head.softmax_effective_rank, 1, rel_tol=1e-9)


def test_weights_that_single_out_a_key_have_no_entropy_and_full_rank():
    q = 100 * torch.eye(WIDTH, dtype=torch.float64).expand(1, HEADS, -1, -1)
    head = fidelity("softmax", q, q, q).heads[0]
    assert head.softmax_entropy < 1e-9
    assert math.isclose(head.softmax_effective_rank, WIDTH, rel_tol=1e-9)


def test_the_effective_rank_of_equal_singular_values_is_their_number():
    x = torch.zeros(1, 7, 5, dtype=torch.float64)
    x[0, [0, 3, 6], [1, 2, 4]] = 0.5
    torch.testing.assert_close(effective_rank(x), torch.tensor([3.0], dtype=torch.float64))


def test_the_effective_rank_is_of_singular_values_and_not_of_their_squares():
    x = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    torch.testing.assert_close(effective_rank(x), torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("causal", [False, True])
def test_a_kl_is_never_negative_and_shares_are_shares(causal):
    for name in stand_ins(DIMS, causal=causal):
        options = dict(find(name).traits.tiny) if name != "taylor" else {}
        result = fidelity(name, *normal(scale=2), causal=causal, draws=1, **options)
        for head in result.heads:
            kl, lost, negative, entropy, rank = figures(
                head, "kl", "lost", "negative", "entropy", "effective_rank"
            )
            assert kl >= 0
            assert 0 <= lost <= 1
            assert 0 <= negative <= 1
            assert 0 <= entropy <= math.log(LENGTH) + 1e-9
            assert 1 - 1e-9 <= rank <= LENGTH + 1e-9


def test_a_window_keeps_the_shape_of_softmax_and_loses_the_mass_outside():
    q, k, v = normal(rows=1)
    result = fidelity("local:width=4", q, k, v)
    near = build("local", DIMS, causal=False, width=4).double()
    seen = mechanism_weights(near, q, k, v)[0] > 0
    outside = (q @ k.mT / WIDTH**0.5).softmax(-1)[0].masked_fill(seen, 0).sum(-1).mean(-1)
    for head, mass in zip(result.heads, outside.tolist(), strict=True):
        assert figures(head, "kl")[0] < 1e-12
        assert math.isclose(figures(head, "lost")[0], mass)


def test_negative_weights_are_counted():
    head = fidelity("linformer:rank=4", *normal(), draws=1).heads[0]
    assert figures(head, "negative")[0] > 0.1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["performer:features=16", "local:width=4", "poolingformer"])
def test_padding_changes_nothing(name, causal):
    q, k, v = normal(rows=1)
    expected = fidelity(name, q, k, v, causal=causal)
    valid = torch.ones(1, LENGTH + 5, dtype=torch.bool)
    valid[0, [0, 3, 4, 20, 28]] = False
    padded = [torch.full((1, HEADS, LENGTH + 5, WIDTH), math.nan, dtype=torch.float64) for _ in "qkv"]
    for x, real in zip(padded, (q, k, v), strict=True):
        x[:, :, valid[0]] = real
    rows = [torch.cat([x, torch.full_like(x, math.nan)]) for x in padded]  # and a row of padding alone
    both = torch.cat([valid, torch.zeros_like(valid)])
    assert_same(fidelity(name, *rows, valid=both, causal=causal), expected)


def test_heads_that_change_places_take_their_figures_along():
    q, k, v = normal(heads=3)
    order = [2, 0, 1]
    together = fidelity("linear", *(x[:, order] for x in (q, k, v))).heads
    straight = fidelity("linear", q, k, v).heads
    for place, h in enumerate(order):
        assert_same(replace(together[place], head=h), straight[h])
    assert len({figures(head, "relative_error")[0] for head in straight}) == 3


def test_the_error_of_all_heads_is_pooled():
    q, k, v = normal()
    result = fidelity("linear", q, k, v)
    exact, ours = (
        F.scaled_dot_product_attention(q, k, v),
        build("linear", DIMS, causal=False).double()(q, k, v),
    )
    assert result.relative_error
    assert math.isclose(result.relative_error.mean, ((ours - exact).norm() / exact.norm()).item())


def test_a_scale_is_that_of_the_scores_for_both():
    q, k, v = normal()
    expected = fidelity("hedgehog", 2 * q, k, v)
    assert_same(fidelity("hedgehog", q, k, v, scale=2 * WIDTH**-0.5), expected)
    assert (
        fidelity("softmax", q, k, v, scale=0.1).heads[0].softmax_entropy > expected.heads[0].softmax_entropy
    )


def test_long_rows_are_cut_to_a_stated_length():
    q, k, v = normal()
    result = fidelity("linear", q, k, v, causal=True, most_tokens=10)
    assert (result.tokens, result.left_out) == (ROWS * 10, ROWS * (LENGTH - 10))
    short = fidelity("linear", *(x[:, :, :10] for x in (q, k, v)), causal=True)
    assert_same(replace(result, left_out=0), short)


def test_queries_may_be_of_another_sequence():
    q, k, v = normal(length=5, keys=LENGTH)
    valid = torch.arange(LENGTH).expand(ROWS, -1) < 20
    result = fidelity("linear", q, k, v, valid=valid)
    assert result.tokens == ROWS * 5
    assert_same(result, fidelity("linear", q, k[:, :, :20], v[:, :, :20]))
    with pytest.raises(ValueError, match="'local'"):
        fidelity("local", q, k, v)


def test_what_is_random_is_drawn_anew_and_the_rest_once():
    torch.manual_seed(7)  # no seed that is a draw's
    before = torch.random.get_rng_state()
    drawn, alone = fidelity("performer", *normal(), draws=4), fidelity("performer", *normal(), draws=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (drawn.draws, alone.draws, fidelity("linear", *normal(), draws=4).draws) == (4, 1, 1)
    assert drawn.relative_error
    assert drawn.relative_error.deviation
    assert alone.relative_error
    assert alone.relative_error.deviation is None
    assert_same(drawn, fidelity("performer", *normal(), draws=4))
    for name in ("feedforward-kernel", "bigbird:block=4", "informer:factor=2", "linformer:rank=4"):
        assert fidelity(name, *normal(), draws=2).draws == 2, name


def test_a_mechanism_that_was_built_is_measured_as_it_is_and_left_so():
    mechanism = build("feedforward-kernel", DIMS, causal=False).to(torch.bfloat16).train()
    weights = {name: x.clone() for name, x in mechanism.state_dict().items()}
    result = fidelity(mechanism, *(x.to(torch.bfloat16) for x in normal()))
    assert (result.attention, result.draws) == ("feedforward-kernel", 1)
    assert mechanism.training
    for name, x in mechanism.state_dict().items():
        assert torch.equal(x, weights[name])


class Squared(LinearAttention):
    """Its outputs are no sum over values."""

    def forward(self, q, k, v, *, valid=None):
        return super().forward(q, k, v * v.abs(), valid=valid)


class Endless(LinearAttention):
    """Its outputs are not finite."""

    def forward(self, q, k, v, *, valid=None):
        return super().forward(q, k, v, valid=valid) / 0


def test_what_is_not_linear_in_values_has_outputs_and_no_weights():
    result = fidelity(Squared(DIMS, causal=False), *normal())
    assert "not linear in its values" in result.reason
    for head in result.heads:
        assert head.relative_error
        assert head.output_cosine
        assert {head.kl, head.lost, head.negative, head.mass, head.entropy, head.effective_rank} == {None}


def test_outputs_that_are_not_finite_have_no_figures():
    result = fidelity(Endless(DIMS, causal=False), *normal())
    assert (result.reason, result.relative_error) == ("its outputs are not finite", None)
    assert result.heads[0].relative_error is None
    json.dumps(asdict(result), allow_nan=False)


@pytest.mark.parametrize(
    ("attention", "options", "message"),
    [
        (
            "reformer",
            {},
            "'reformer' takes no k, of which a model's attention is made; those that can stand in",
        ),
        ("infinity", {"causal": True}, "'infinity' takes long_k, long_v beside q, k and v"),
        ("gated-delta", {}, "'gated-delta' takes beta, alpha, gate beside q, k and v"),
        ("taylor:width=4", {}, "'taylor' takes q of width 4, and the heads are 8 wide"),
        ("informer", {"causal": True}, "'informer' knows the future by its choice of keys"),
        ("linformer", {"causal": True}, "'linformer' has no causal form"),
        ("local+linear", {}, "one layer takes one of them"),
        ("liner", {}, "did you mean 'linear'"),
        ("local", {"widht": 4}, "did you mean 'width'"),
        ("linear", {"draws": 0}, "draws and most_tokens are at least 1, not 0 and 512"),
    ],
)
def test_what_cannot_stand_in_is_refused_in_a_line_that_names_the_remedy(attention, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fidelity(attention, *normal(), **options)
    assert "\n" not in str(refusal.value)


def test_inputs_that_do_not_fit_are_refused():
    q, k, v = normal()
    with pytest.raises(ValueError, match="q, k or v of row 1 has numbers that are not finite"):
        fidelity("linear", q, k, v.index_fill(0, torch.tensor([1]), math.inf))
    with pytest.raises(ValueError, match="no real token"):
        fidelity("linear", q, k, v, valid=torch.zeros(ROWS, LENGTH, dtype=torch.bool))
    with pytest.raises(ValueError, match="'fidelity' got v of shape"):
        fidelity("linear", q, k, v[..., :3])
    with pytest.raises(ValueError, match="leave features out"):
        fidelity(build("linear", DIMS, causal=False), q, k, v, features=4)


def test_a_built_mechanism_of_other_sizes_or_another_form_cannot_stand_in():
    mechanism = build("linear", DIMS, causal=True)
    require_stand_in(mechanism, DIMS, causal=True)
    with pytest.raises(ValueError, match="built with causal=True: build it with causal=False"):
        require_stand_in(mechanism, DIMS, causal=False)
    with pytest.raises(ValueError, match="built for 2 heads, and there are 3"):
        require_stand_in(mechanism, replace(DIMS, heads=3), causal=True)


def test_the_list_of_stand_ins_is_of_those_that_can_be_built_so():
    without = replace(DIMS, max_len=None)
    for causal in (False, True):
        able = stand_ins(DIMS, causal=causal)
        assert {"softmax", "linear", "performer"} <= {*able}
        assert not {"reformer", "infinity", "delta", "taylor"} & {*able}
        for name in able:
            build_stand_in(name, DIMS, causal=causal)
    assert "linformer" in stand_ins(DIMS, causal=False)
    assert "linformer" not in stand_ins(without, causal=False)


def test_mechanisms_that_share_the_heads_are_measured_on_their_own():
    q, k, v = normal()
    mixed, near = (fidelity(name, q, k, v) for name in ("local:width=4&softmax", "local:width=4"))
    assert_same(mixed.heads[0], near.heads[0])
    assert figures(mixed.heads[1], "relative_error")[0] < 1e-12


@pytest.mark.parametrize("clusters", [0, 5])
@pytest.mark.parametrize(("norm", "cosine"), [(1.0, 0.0), (4.0, 0.5), (16.0, 1.0)])
def test_random_activations_have_the_norms_and_angles_that_are_asked_for(norm, cosine, clusters):
    q, k, v = random_activations(
        norm=norm, cosine=cosine, length=400, heads=2, head_dim=64, clusters=clusters, seed=3
    )
    assert q.shape == k.shape == v.shape == (1, 2, 400, 64)
    sizes = q.norm(dim=-1) * k.norm(dim=-1) / 64**0.5
    torch.testing.assert_close(sizes, torch.full_like(sizes, norm))
    cosines = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT)[0]
    if clusters and cosine == 1:
        assert (cosines > 1 - 1e-9).double().mean().item() == pytest.approx(1 / clusters, abs=0.05)
    elif clusters:
        matched = cosines[cosines > cosine / 2] if cosine else cosines
        assert matched.mean().item() == pytest.approx(cosine, abs=0.1)
    elif cosine:
        torch.testing.assert_close(
            cosines.amax(-1), torch.full((2, 400), cosine, dtype=torch.float64), atol=0.1, rtol=0
        )


def test_a_causal_query_matches_a_key_that_it_sees():
    q, k, _ = random_activations(norm=1, cosine=1, length=50, heads=1, head_dim=32, causal=True)
    assert ((q @ k.mT)[0, 0].argmax(-1) <= torch.arange(50)).all()


def test_softmax_sharpens_with_the_norm():
    heads = [
        fidelity(
            "softmax", *random_activations(norm=norm, cosine=0.9, length=64, heads=1, head_dim=32)
        ).heads[0]
        for norm in (1, 4, 16)
    ]
    assert heads[0].softmax_entropy > heads[1].softmax_entropy > heads[2].softmax_entropy
    assert heads[2].query_norm.mean == pytest.approx((16 * 32**0.5) ** 0.5)


@pytest.mark.parametrize(
    "wrong", [{"norm": 0.0}, {"cosine": 1.5}, {"cosine": -0.1}, {"head_dim": 1}, {"length": 0}]
)
def test_activations_that_cannot_be_drawn_are_refused(wrong):
    with pytest.raises(ValueError, match=r"a norm is above 0|a head is 2 wide"):
        random_activations(**{"norm": 1.0, "cosine": 0.5, "length": 8, "heads": 1, "head_dim": 8, **wrong})


def made_up_layers(norms=(0.3, 2.0, 12.0)):
    for place, norm in enumerate(norms):
        yield Activations(
            f"layer {place}",
            *random_activations(
                norm=norm, cosine=0.9, length=32, heads=3, head_dim=8, causal=True, seed=place
            ),
        )


def test_the_layers_that_bear_a_conversion_are_those_within_the_threshold():
    model = layer_fidelities("performer", made_up_layers(), threshold=0.2, features=256)
    errors = [each.fidelity.relative_error.mean for each in model.layers if each.fidelity.relative_error]
    assert errors == sorted(errors)
    assert errors[0] <= 0.2 < errors[2]
    assert model.bearing == [f"layer {place}" for place, error in enumerate(errors) if error <= 0.2]
    assert layer_fidelities("softmax", made_up_layers(), threshold=1e-9).bearing == [
        "layer 0",
        "layer 1",
        "layer 2",
    ]
    assert [len(each.fidelity.heads) for each in model.layers] == [3, 3, 3]
    json.dumps(asdict(model), allow_nan=False)


def test_a_layer_that_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match=r"^layer 0: 'linformer' has no causal form"):
        layer_fidelities("linformer", made_up_layers())
    with pytest.raises(ValueError, match="no layer"):
        layer_fidelities("linear", [])


def test_layers_are_asked_for_one_at_a_time(monkeypatch):
    alive = []

    def layers():
        for each in made_up_layers():
            alive.append(each.layer)
            yield each

    seen = []
    monkeypatch.setattr(
        "subquad.measure.layer_fidelity.fidelity",
        lambda *inputs, layer, **options: seen.append((layer, len(alive))) or fidelity(*inputs, **options),
    )
    layer_fidelities("linear", layers())
    assert seen == [(0, 1), (1, 2), (2, 3)]
