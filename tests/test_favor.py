"""What FAVOR+ promises on average, tested as statistics, and what it must survive."""

import math

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims, build
from subquad.features.favor import Favor, gaussian, haar, orthogonal_gaussian

HEAD_DIM = 8
DRAWS = 400


def pair(scale):
    """One query and one key in which (q . k) is moderate."""
    generator = torch.Generator().manual_seed(1)
    return (
        scale * torch.randn(1, 1, 1, HEAD_DIM, dtype=torch.float64, generator=generator) for _ in range(2)
    )


def directions(performer):
    return performer.state_dict()["features.W"]


def estimates(q, k, *, features, orthogonal, draws=DRAWS):
    """The kernel estimated by independent draws of the features, over its true value."""
    true = (q * k).sum() / HEAD_DIM**0.5
    maps = (
        Favor(HEAD_DIM, features=features, seed=seed, orthogonal=orthogonal).double() for seed in range(draws)
    )
    return torch.stack([(phi(q) * phi(k)).sum() for phi in maps]) / true.exp()


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_kernel_is_estimated_without_bias(orthogonal):
    q, k = pair(0.7)
    found = estimates(q, k, features=16, orthogonal=orthogonal)
    assert (found.mean() - 1).abs() < 4 * found.std() / DRAWS**0.5


def test_the_error_falls_as_one_over_the_root_of_the_features():
    q, k = pair(0.7)
    few, many = (estimates(q, k, features=f, orthogonal=False).std() for f in (16, 256))
    slope = math.log(many / few) / math.log(256 / 16)
    assert -0.6 < slope < -0.4


def test_orthogonal_features_err_less():
    q, k = pair(0.7)
    orthogonal, independent = (estimates(q, k, features=8, orthogonal=o).std() for o in (True, False))
    assert orthogonal < 0.95 * independent


def test_rows_are_orthogonal_within_blocks_and_as_long_as_gaussian_ones():
    W = orthogonal_gaussian(2000, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    block = W[:HEAD_DIM] / W[:HEAD_DIM].norm(dim=1, keepdim=True)
    assert_close(block @ block.mT, torch.eye(HEAD_DIM, dtype=W.dtype))
    squared = W.square().sum(1)  # chi-squared with d degrees of freedom: mean d, variance 2 d
    assert (squared.mean() - HEAD_DIM).abs() < 4 * (2 * HEAD_DIM / len(W)) ** 0.5
    assert (squared.var() / (2 * HEAD_DIM) - 1).abs() < 0.3


def test_blocks_are_haar_distributed():
    Q = haar(4000, 4, generator=torch.Generator().manual_seed(0))
    # for Haar matrices the trace has mean 0 and variance 1; QR without its signs has mean below -1
    trace = Q.diagonal(dim1=1, dim2=2).sum(1)
    assert trace.mean().abs() < 4 / 4000**0.5
    assert (trace.var() - 1).abs() < 0.1
    assert Q[:, 0, 0].mean().abs() < 4 * (0.25 / 4000) ** 0.5


def test_fewer_features_than_a_block_are_taken_from_it():
    W = orthogonal_gaussian(3, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    assert W.shape == (3, HEAD_DIM)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 1, 12])
def test_float32_survives_any_norm(causal, scale):
    """Against sums in log space of the same features in float64."""
    performer = build("performer", Dims(heads=2, head_dim=64), causal=causal, features=64)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 100, 64, generator=generator) * s for s in (scale, scale, 1))
    phi = Favor(64, features=64, seed=0, orthogonal=True).double()
    kernel = torch.logsumexp(
        phi.log_queries(q.double())[..., None, :] + phi.log_keys(k.double())[:, :, None], -1
    )
    if causal:
        kernel = kernel.masked_fill(torch.ones(100, 100).triu(1).bool(), -torch.inf)
    assert_close(performer(q, k, v), (kernel.softmax(-1) @ v.double()).float(), rtol=0, atol=1e-3)


def test_redrawing_changes_the_features_and_a_seed_repeats_them():
    first, second = (build("performer", Dims(heads=1, head_dim=4), causal=True) for _ in range(2))
    first.redraw(generator=torch.Generator().manual_seed(9))
    assert not torch.equal(directions(first), directions(second))
    second.redraw(generator=torch.Generator().manual_seed(9))
    assert torch.equal(directions(first), directions(second))


def test_seeds_differ():
    first, second = (build("performer", Dims(heads=1, head_dim=4), causal=True, seed=s) for s in (0, 1))
    assert not torch.equal(directions(first), directions(second))


def test_independent_features_are_not_orthogonal():
    W = gaussian(HEAD_DIM, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    assert (W @ W.mT - torch.diag((W @ W.mT).diagonal())).abs().max() > 0.1
