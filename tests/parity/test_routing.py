"""Against routing-transformer, with its means replaced by our centroids."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.routing import RoutingAttention

theirs = pytest.importorskip("routing_transformer.routing_transformer")

LENGTH, HEADS, HEAD_DIM = 24, 2, 8


def pair(*, clusters, window, causal=False):
    mechanism = RoutingAttention(
        Dims(heads=HEADS, head_dim=HEAD_DIM), causal=causal, clusters=clusters, window=window
    ).double()
    other = theirs.KmeansAttention(clusters, window, HEADS, HEAD_DIM, causal=causal).double()
    other.kmeans.means.copy_(mechanism.mu)
    other.kmeans.initted.fill_(True)
    return mechanism, other


def inputs(*, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, HEADS, LENGTH, HEAD_DIM, dtype=torch.float64, generator=generator).unbind(0)


def normalised(q, k, v):
    """Theirs normalises only to route, and attends with what it was given; the paper normalises for both."""
    return *(F.layer_norm(x, x.shape[-1:]) for x in (q, k)), v


@pytest.mark.parametrize("clusters", [1, 3, 4])
def test_bidirectional_routing_agrees(clusters):
    mechanism, other = pair(clusters=clusters, window=LENGTH // clusters)
    expected, _ = other.eval()(*normalised(*inputs()))
    found = mechanism(*inputs())
    assert_close(found, expected, rtol=1e-4, atol=1e-5)  # an epsilon added to the number of clusters
    assert_close(found == 0, expected == 0)  # tokens in no cluster


def test_commitment_agrees_up_to_the_mean_over_a_heads_width():
    mechanism, other = pair(clusters=3, window=8)
    _, penalty = other(*normalised(*inputs()))
    mechanism(*inputs())
    assert_close(mechanism.penalty(), HEAD_DIM * penalty, rtol=1e-4, atol=0)


def test_their_causal_outputs_depend_on_later_queries_and_keys_and_ours_do_not():
    """Which tokens a cluster takes is decided over the whole sequence there, in the order of time here."""
    inputs_, later = inputs(seed=1), inputs(seed=2)
    changed = [torch.cat([x[:, :, :12], y[:, :, 12:]], 2) for x, y in zip(inputs_, later, strict=True)]
    mechanism, other = pair(clusters=3, window=8, causal=True)
    other.eval()
    before, after = (other(*normalised(*x))[0][:, :, :12] for x in (inputs_, changed))
    assert (after - before).abs().amax() > 0.1
    before, after = (mechanism(*x)[:, :, :12] for x in (inputs_, changed))
    assert_close(after, before)


def test_padding_moves_their_means_and_not_ours():
    q, k, v = inputs()
    valid = torch.arange(LENGTH).expand(2, -1) < 16
    learnt = []
    for scale in (1, -1):  # of what stands at padding
        padded = [torch.where(valid[:, None, :, None], x, scale * x) for x in (q, k, v)]
        mechanism, other = pair(clusters=3, window=8)
        mechanism(*padded, valid=valid)
        mechanism.update()
        other.train()(*normalised(*padded), query_mask=valid, key_mask=valid)
        other.kmeans.update()
        learnt.append((mechanism.mu, other.kmeans.means))
    (ours_before, theirs_before), (ours_after, theirs_after) = learnt
    assert_close(ours_after, ours_before)
    assert (theirs_after - theirs_before).abs().amax() > 1e-5
