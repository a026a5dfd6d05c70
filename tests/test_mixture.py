"""Mechanisms that share the heads of a layer: the contract, what a mixture claims, and what it cannot be."""

import pytest
import torch
from torch.testing import assert_close

from subquad.mechanism import Dims
from subquad.mixture import Share, mix_heads
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.redraw import redraw
from subquad.registry import build, catalog, find
from subquad.testing import contract
from subquad.testing.mechanism import cost
from subquad.testing.mechanism.cases import make, random_inputs

MIXTURES = (
    "softmax&local:width=3",  # states that grow beside bounded ones
    "local:width=3&taylor:width=3",  # queries of different widths
    "routing:clusters=3,window=7&local:width=3",  # what gradients do not teach
    "gated-delta&local:width=3*2",  # inputs that one alone takes
    "softmax&reformer:bucket=3,rounds=2",  # causal in values, and without keys
)
CHECKS = [
    (name, check)
    for name in MIXTURES
    for check in contract(find(name))
    if not hasattr(check, "slow") and check.__module__ != cost.__name__
]
DIMS = Dims(heads=4, head_dim=8, max_len=24)


def label(value):
    return value if isinstance(value, str) else value.__name__.removeprefix("check_")


@pytest.mark.parametrize(("name", "check"), CHECKS, ids=label)
def test_a_mixture_keeps_the_contract(name, check):
    check(find(name))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["softmax", "local", "linear", "gated-delta"])
def test_members_that_are_all_alike_are_that_mechanism(name, causal):
    cls = catalog()[name]
    if not causal and not cls.traits.bidirectional:
        pytest.skip("it has no bidirectional form")
    tiny = tuple(cls.traits.tiny.items())
    whole = make(cls, causal=causal)
    mixed = make(mix_heads((Share(cls, tiny, 1), Share(cls, tiny, 1))), causal=causal)
    halves = [member.state_dict() for member in mixed.members()]
    for key, weight in whole.state_dict().items():
        for half, part in zip(halves, weight.chunk(2) if len(weight) == 2 else (weight, weight), strict=True):
            half[key].copy_(part)
    inputs = random_inputs(whole)
    assert_close(mixed(**inputs), whole(**inputs))
    assert_close(mixed.penalty(), whole.penalty())


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("local&taylor", {"causal": "strict", "state": "bounded", "cost": 1.0, "bidirectional": True}),
        ("local&softmax", {"state": "growing", "cost": 2.0, "cross": False, "normalised": True}),
        ("softmax&linear", {"cross": True, "normalised": True, "family": "other"}),
        ("softmax&reformer", {"causal": "values", "state": None}),
        ("softmax&poolingformer", {"causal": "strict", "state": None}),
        ("softmax&bigbird", {"causal": None, "state": None}),
        ("transformer-xl&linear", {"bidirectional": False, "normalised": True}),
        ("local&bigbird", {"family": "sparse"}),
        ("local:width=24&softmax", {"limit": {}}),
        ("local:width=3&softmax", {"limit": None}),
    ],
)
def test_a_mixture_claims_what_all_its_members_claim(name, claims):
    traits = find(name).traits
    assert {claim: getattr(traits, claim) for claim in claims} == claims


def test_shares_are_of_however_many_heads_there_are():
    counts = [member.dims.heads for member in build("local*2&taylor*6", DIMS, causal=True).members()]
    assert counts == [1, 3]
    assert find("local*2&taylor*6").traits == find("local&taylor*3").traits
    with pytest.raises(ValueError, match="splits heads into 3 shares, and 4 heads do not divide so"):
        build("local&taylor*2", DIMS, causal=True)


def test_members_without_a_form_in_common_are_refused():
    with pytest.raises(ValueError, match="'transformer-xl' is causal alone and 'linformer'"):
        find("transformer-xl&linformer")


def test_layers_within_a_layer_are_refused():
    with pytest.raises(ValueError, match=r"'local\+softmax' names mechanisms for the layers of a network"):
        build("local+softmax", DIMS, causal=True)
    with pytest.raises(ValueError, match="names mechanisms for the layers of a network"):
        build("(local+softmax)&linear", DIMS, causal=True)


def test_an_unknown_member_or_option_is_refused_by_its_name():
    with pytest.raises(ValueError, match="unknown mechanism 'tailor'; did you mean 'taylor'"):
        find("local&tailor")
    with pytest.raises(ValueError, match="'local' has no option 'window'"):
        find("local:window=3&taylor")
    with pytest.raises(ValueError, match=r"'local\*99999999' stands more than 10,000 times"):
        find("local*99999999&taylor")
    with pytest.raises(ValueError, match=r"'local\*0' stands nowhere"):
        find("local*0&taylor")


def test_queries_turn_only_where_all_members_see_them_whole():
    for name in ("local&softmax", "softmax&forgetting", "gated-delta&linear"):
        MultiheadAttention(16, 2, name, causal=True, rotary=True)
    for name in ("softmax&longformer", "local&taylor:width=8"):
        MultiheadAttention(16, 2, name, rotary=True)
    with pytest.raises(ValueError, match="rotary positions would turn what one of them sees in part"):
        MultiheadAttention(16, 2, "local&taylor:width=4", rotary=True)
    with pytest.raises(ValueError, match="queries or keys of 'reformer' against what does not turn"):
        MultiheadAttention(16, 2, "softmax&reformer", rotary=True)


def test_a_scale_is_that_of_all_members():
    torch.manual_seed(0)
    layer = MultiheadAttention(16, 2, "local:width=3&softmax", causal=True, scale=0.5).double()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in (x @ layer.in_proj_weight.mT).chunk(3, -1))
    scores = 0.5 * q @ k.mT
    behind = torch.arange(7)[:, None] - torch.arange(7)
    scores[:, 0].masked_fill_((behind < 0) | (behind > 3), -torch.inf)
    scores[:, 1].masked_fill_(behind < 0, -torch.inf)
    out = layer.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert_close(layer(x, x, x)[0], out)
    for name in ("local&linear", "local&taylor:width=4"):
        with pytest.raises(ValueError, match="does not weigh keys by scores"):
            MultiheadAttention(16, 2, name, scale=0.5)


def test_each_member_is_redrawn_when_it_is_due():
    members = ("performer:redraw_every=2", "performer:redraw_every=3", "local*2")
    layer = MultiheadAttention(16, 4, "&".join(members))
    drawn = [member.get_buffer("features.project.W") for member in layer.mechanism.members()[:2]]
    for step, due in ((1, [False, False]), (2, [True, False]), (3, [False, True]), (6, [True, True])):
        before = [W.clone() for W in drawn]
        redraw(layer, step=step, seed=0)
        assert [not torch.equal(*pair) for pair in zip(before, drawn, strict=True)] == due
