"""Laws of the trainable kernels."""

import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad import Dims, build, catalog
from subquad.features.feedforward import FeedForward
from subquad.mechanisms import feedforward
from subquad.mechanisms.feedforward import PAPERS_KERNELS

NAMES = [cls.traits.name for cls in PAPERS_KERNELS]
DIMS = Dims(heads=2, head_dim=8)


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_papers_eight_kernels_have_names():
    assert set(NAMES) < set(catalog())
    assert len(NAMES) == 8


@pytest.mark.parametrize("cls", PAPERS_KERNELS, ids=NAMES)
def test_a_kernel_adds_as_many_parameters_as_its_page_says(cls):
    """To blocks of the paper's models for Long Range Arena, of text and of ListOps."""
    page = feedforward.__doc__ or ""
    (told,) = re.findall(rf"^    {cls.traits.name} +([0-9.]+) +([0-9.]+)$", page, re.MULTILINE)
    for width, share in zip((256, 512), told, strict=True):
        block = nn.TransformerEncoderLayer(width, width // 64, 1024)
        added = numel(cls(Dims(heads=width // 64, head_dim=64), causal=False))
        assert f"{100 * added / numel(block):.1f}" == share


def test_a_gate_of_low_rank_has_fewer_weights():
    full, low = (
        numel(build("feedforward-kernel", Dims(heads=2, head_dim=64), causal=False, gate_rank=rank))
        for rank in (1.0, 0.25)
    )
    assert full - low == 2 * (64 * 64 - 2 * 64 * 16)


def test_orthogonal_kernels_start_without_penalty_and_pay_for_leaving():
    kernel = build("oglu-2", DIMS, causal=True)
    assert_close(kernel.penalty(), torch.zeros(()), atol=1e-6, rtol=0)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.mul_(2)
    # 2 Q has W W^T - I = 3 I, whose mean square is 9 / 8, in two layers of queries and of keys, times 0.01
    assert_close(kernel.penalty(), torch.tensor(2 * 2 * 0.01 * 9 / 8))


def test_the_penalty_pulls_weights_back_to_orthogonal_ones():
    kernel = build("orthogonal-linear-kernel", DIMS, causal=True)
    (W,) = kernel.parameters()
    with torch.no_grad():
        W.add_(0.2 * torch.randn(W.shape, generator=torch.Generator().manual_seed(0)))
    before = kernel.penalty().item()
    optimiser = torch.optim.Adam(kernel.parameters(), lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        kernel.penalty().backward()
        optimiser.step()
    assert kernel.penalty().item() < before / 100


@pytest.mark.parametrize("activation", ["softplus", "gelu", "sigmoid"])
@pytest.mark.parametrize("gate", ["none", "glu"])
def test_features_are_positive(activation, gate):
    phi = FeedForward(
        2,
        8,
        gate=gate,
        layers=2,
        orthogonal=False,
        gate_rank=1.0,
        activation=activation,
        strength=0.0,
    )
    x = 3 * torch.randn(4, 2, 500, 8, generator=torch.Generator().manual_seed(0))
    assert (phi(x) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "gru"}, "gate must be one of none, glu, not 'gru'"),
        ({"layers": 4}, "layers must be from 1 to 3, not 4"),
        ({"activation": "relu"}, "activation must be one of softplus, gelu, sigmoid, not 'relu'"),
        ({"gate_rank": 0.0}, "gate_rank must be a share of the head's width, above 0 and up to 1, not 0.0"),
        ({"strength": -1.0}, "strength must be zero or a positive number, not -1.0"),
    ],
)
def test_an_impossible_option_is_refused_with_what_is_possible(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build("feedforward-kernel", DIMS, causal=True, **options)
