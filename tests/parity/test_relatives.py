"""Taylor, Hedgehog and DPFP features, and Based's attention, against flash-linear-attention's."""

import warnings

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.features.hedgehog import Hedgehog
from subquad.mechanisms.dpfp import DpfpAttention
from subquad.mechanisms.hedgehog import HedgehogAttention
from subquad.mechanisms.taylor import TaylorAttention

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for a GPU
    feature_map = pytest.importorskip("fla.modules.feature_map")
    based = pytest.importorskip("fla.ops.based.naive")

HEAD_DIM = 6
DIMS = Dims(heads=2, head_dim=HEAD_DIM)


def tokens(length, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, length, HEAD_DIM, dtype=torch.float64, generator=generator)


def assert_same_kernel(ours, theirs):
    """Features may stand in another order: their dot products may not differ."""
    q, k = tokens(9), tokens(7, seed=1)
    assert_close(ours(q) @ ours(k).mT, theirs(q) @ theirs(k).mT)


@pytest.mark.filterwarnings("ignore::UserWarning")  # theirs goes through an old form of checkpointing
def test_taylor_features_are_theirs():
    ours = TaylorAttention(DIMS, causal=True, width=HEAD_DIM).features
    assert_same_kernel(ours, feature_map.TaylorFeatureMap(HEAD_DIM))


@pytest.mark.parametrize("nu", [1, 4])
def test_dpfp_features_are_theirs(nu):
    ours = DpfpAttention(DIMS, causal=True, nu=nu).features
    assert_same_kernel(ours, feature_map.DPFPFeatureMap(HEAD_DIM, nu=nu))


def test_normalised_hedgehog_features_are_theirs_with_weights_of_twice_the_size():
    theirs = feature_map.HedgehogFeatureMap(HEAD_DIM).double()
    ours = HedgehogAttention(DIMS, causal=True, normalise=True).double().features
    assert isinstance(ours, Hedgehog)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
        ours.W.copy_(2 * theirs.layer.weight.mT)
        ours.b.copy_(2 * theirs.layer.bias)
    assert_close(ours(tokens(9)), theirs(tokens(9)))


@pytest.mark.parametrize("form", ["naive_parallel_based", "naive_chunk_based"])
def test_causal_taylor_attention_is_based(form):
    q, k, v = (tokens(256, seed=seed) for seed in range(3))
    ours = TaylorAttention(DIMS, causal=True, width=HEAD_DIM)(q, k, v)
    # it adds 1e-6 to a denominator that is at least 1/2; ours adds nothing
    assert_close(ours, getattr(based, form)(q, k, v), rtol=2e-6, atol=1e-6)
