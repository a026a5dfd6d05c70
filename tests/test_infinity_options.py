"""The infinity-former as its authors configure it: across heads, masked, shared, sparse."""

import pytest
import torch
from torch.testing import assert_close
from variants import variant

from subquad import Dims, MultiheadAttention
from subquad.mechanisms.infinity import InfinityAttention, InfinityGpt2Attention
from subquad.nn.sequence import Sequence
from subquad.testing import contract
from subquad.testing.mechanism import cost
from subquad.testing.mechanism.cases import random_inputs

H, D, LENGTH = 2, 4, 24
TINY = dict(InfinityAttention.traits.tiny)


VARIANTS = {
    "sparsemax": variant(InfinityAttention, density="sparsemax"),
    "shared": variant(InfinityAttention, shared=True),
    "across heads": variant(InfinityAttention, across_heads=True, smallest_variance=1e-2),
    "without mask": variant(InfinityGpt2Attention, mask=False),
    "masked sparsemax": variant(InfinityGpt2Attention, density="sparsemax", sticky=False),
}
CASES = [
    (name, check)
    for name, cls in VARIANTS.items()
    for check in contract(cls)
    if check.__module__ != cost.__name__ and not hasattr(check, "slow")
]


def label(value):
    return value if isinstance(value, str) else value.__name__.removeprefix("check_")


@pytest.mark.parametrize(("name", "check"), CASES, ids=label)
def test_every_option_keeps_the_contract(name, check):
    check(VARIANTS[name])


def made(cls, *, seed=0, **options):
    torch.manual_seed(seed)
    return cls(Dims(heads=H, head_dim=D), causal=True, **{**TINY, **options}).double()


def across(x, W):
    """`x` times W, across heads."""
    return (x.transpose(1, 2).flatten(2) @ W).unflatten(2, (H, D)).transpose(1, 2)


def test_projecting_the_signal_is_projecting_what_it_is_fitted_to():
    gpt2, plain = (
        made(InfinityGpt2Attention, mask=False),
        made(InfinityAttention, shared=True, across_heads=True, smallest_variance=1e-4),
    )
    plain.load_state_dict(gpt2.state_dict(), strict=False)
    inputs = random_inputs(gpt2, dtype=torch.float64)
    x = inputs.pop("memory")
    projected = plain(**inputs, long_k=across(x, gpt2.W_K), long_v=across(x, gpt2.W_V))
    assert_close(gpt2(**inputs, memory=x), projected)


@pytest.mark.parametrize("opened", [True, False])
def test_an_open_mask_lets_all_of_the_past_into_the_signal_and_a_shut_one_nothing(opened):
    masked, bare = made(InfinityGpt2Attention), made(InfinityGpt2Attention, mask=False)
    bare.load_state_dict(masked.state_dict(), strict=False)
    torch.nn.init.zeros_(masked.C)
    torch.nn.init.constant_(masked.c, 60 if opened else -60)
    if not opened:
        torch.nn.init.zeros_(bare.W_V)
    inputs = random_inputs(masked, dtype=torch.float64)
    assert_close(masked(**inputs), bare(**inputs))


def test_the_mask_of_a_token_sees_its_neighbours_within_a_segment_and_no_others():
    attention = made(InfinityGpt2Attention)
    x = torch.randn(1, H, 5, D, dtype=torch.float64, requires_grad=True)
    remembered = attention._remembered(x)
    for token in range(5):
        (reached,) = torch.autograd.grad(remembered[:, :, token].sum(), x, retain_graph=True)
        seen = reached.abs().sum((0, 1, 3)) > 0
        assert seen.tolist() == [abs(token - other) <= 1 for other in range(5)]


def test_across_heads_the_long_term_memory_has_any_output_projection():
    torch.manual_seed(0)
    layer = MultiheadAttention(H * D, H, "infinity", causal=True, across_heads=True, **TINY).double()
    assert isinstance(layer.mechanism, InfinityAttention)
    W_o, O = layer.mechanism.W_o, layer.out_proj.weight.detach()
    x, wanted = torch.randn(1, LENGTH, H * D).double(), torch.randn(H * D, H * D).double()

    def output(mapped):
        """The layer's, if the map from what is read to it is to be `mapped`."""
        W_o.data = torch.linalg.solve(O, mapped).mT
        return layer(x, x, x)[0]

    nothing = output(torch.zeros_like(wanted))
    read = output(torch.eye(H * D).double()) - nothing
    assert read.any()
    assert_close(output(wanted) - nothing, read @ wanted.mT)


@pytest.mark.parametrize(("cls", "smallest"), [(InfinityAttention, 1e-6), (InfinityGpt2Attention, 1e-4)])
def test_reads_are_as_narrow_as_the_authors_let_them_be(cls, smallest):
    long = made(cls).long_term
    torch.nn.init.constant_(long.w_sigma, -1e3)
    q, K_T = torch.ones(1, H, 3, D).double(), torch.ones(1, H, D, TINY["basis"]).double()
    w, b = long.logit_weights(q)
    assert_close(long.locate(q, K_T @ w, b).variance, torch.full((1, H, 3), smallest).double())


@pytest.mark.parametrize("name", ["infinity", "infinity-gpt2"])
def test_detached_hidden_states_learn_from_no_later_segment_while_what_projects_them_does(name):
    torch.manual_seed(0)
    layer = MultiheadAttention(H * D, H, name, causal=True, detach=True, **TINY).double()
    x = torch.randn(1, LENGTH, H * D, dtype=torch.float64, requires_grad=True)
    out = layer.attend(Sequence(x, None, torch.arange(LENGTH)[None]))
    for start in range(0, LENGTH, 5):
        loss = out[:, start : start + 5].square().sum()
        dx, dW = torch.autograd.grad(loss, [x, layer.in_proj_weight], retain_graph=True)
        assert not dx[:, :start].any()
        assert dx[:, start:].any()
        if start >= 10:  # from where on the long-term memory holds something
            assert dW[3 * H * D :].abs().sum(1).all()


@pytest.mark.parametrize("sticky", [False, True])
def test_only_what_the_latest_write_added_has_a_gradient(sticky):
    attention = made(InfinityAttention, sticky=sticky, detach=True)
    inputs = random_inputs(attention, dtype=torch.float64, batch=1, requires_grad=True)
    out = attention(**inputs)
    for start in range(10, LENGTH, 5):
        (found,) = torch.autograd.grad(
            out[:, :, start : start + 5].sum(), inputs["long_v"], retain_graph=True
        )
        reached = found[0].abs().sum((0, 2)) > 0
        assert reached.nonzero().flatten().tolist() == list(range(start - 10, start - 5))


def test_shared_reads_are_two_vectors_whatever_the_heads():
    long = made(InfinityAttention, shared=True).long_term
    shapes = {name: tuple(p.shape) for name, p in long.named_parameters()}
    assert shapes == {"w_mu": (1, TINY["basis"]), "w_sigma": (1, TINY["basis"])}


@pytest.mark.parametrize("cls", [InfinityAttention, InfinityGpt2Attention])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "softmax"}, "density must be one of gaussian, sparsemax, not 'softmax'"),
        ({"smallest_variance": 0.0}, "smallest_variance must be a positive number, not 0.0"),
    ],
)
def test_an_impossible_option_is_refused_by_name_with_what_is_possible(cls, options, message):
    with pytest.raises(ValueError, match=f"'{cls.traits.name}': {message}"):
        made(cls, **options)
