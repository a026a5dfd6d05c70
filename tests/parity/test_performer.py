"""The Performer against performer-pytorch, with one projection in both, where that package is right.

Its stabiliser adds an epsilon to every feature, which the paper's formula does not have; with eps=0 both are
the same function. Its masks and its causal form are compared only to show what is wrong with them.
"""

import warnings

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.features.directions import haar
from subquad.mechanisms.performer import Performer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks distutils for torch's version, and old names of autocast
    theirs = pytest.importorskip("performer_pytorch.performer_pytorch", exc_type=ImportError)

D = 16
DIMS = Dims(heads=2, head_dim=D)
FUNCTIONS = {
    "relu": torch.nn.ReLU(),
    "abs": torch.abs,
    "gelu": torch.nn.GELU(),
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
}


def tokens(*, scale=1.0, length=50):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, length, D, dtype=torch.float64, generator=generator) for _ in range(3))
    return scale * q, scale * k, v


def performer(*, causal=False, **options):
    """Ours, and its directions for theirs."""
    ours = Performer(DIMS, causal=causal, features=40, **options).double()
    return ours, ours.state_dict()["features.project.W"]


def log_kernel(phi, q, k):
    return (phi.log_queries(q)[:, :, :, None] + phi.log_keys(k)[:, :, None]).logsumexp(-1)


def their_softmax_features(q, k, W, **settings):
    return (
        theirs.softmax_kernel(x, projection_matrix=W, is_query=is_query, **settings)
        for x, is_query in ((q, True), (k, False))
    )


def test_positive_features_give_the_same_attention():
    ours, W = performer()
    q, k, v = tokens()
    assert_close(ours(q, k, v), theirs.linear_attention(*their_softmax_features(q, k, W, eps=0.0), v))


def test_hyperbolic_features_are_theirs_with_both_signs_of_the_projection():
    ours, W = performer(map="hyperbolic")
    q, k, v = tokens()
    both = torch.cat([W, -W])
    assert_close(ours(q, k, v), theirs.linear_attention(*their_softmax_features(q, k, both, eps=0.0), v))


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("projection", [True, False])
def test_generalised_features_are_the_same(kind, scale, projection):
    ours = Performer(DIMS, causal=False, map=kind, projection=projection, rescale=scale).double()
    W = ours.state_dict().get("features.project.W")
    q, k, v = tokens()
    phi_q, phi_k = (
        theirs.generalized_kernel(x, projection_matrix=W, kernel_fn=FUNCTIONS[kind], normalize_data=scale)
        for x in (q, k)
    )
    assert_close(ours.features(q), phi_q)
    assert_close(ours(q, k, v), theirs.linear_attention(phi_q, phi_k, v))


def test_their_epsilon_flattens_attention_as_norms_grow():
    """Ours keeps to the formula: the weights of float64 in log space are the same. Theirs become uniform."""
    ours, W = performer()
    q, k, v = tokens(scale=3)
    flattened = theirs.linear_attention(*their_softmax_features(q, k, W), v)
    exact = log_kernel(ours.features, q, k).softmax(-1) @ v
    assert_close(ours(q, k, v), exact)
    assert (flattened - exact).norm() > 0.3 * exact.norm()


def test_their_padding_stays_in_the_denominator():
    """They zero the values of padding and not its keys; ours gives what the sequence without padding does."""
    layer = theirs.SelfAttention(32, heads=2, dim_head=D, nb_features=40).double().eval()
    x = torch.randn(1, 20, 32, dtype=torch.float64)
    valid = torch.arange(20)[None] < 12
    alone = layer(x[:, :12])
    assert (layer(x, mask=valid)[:, :12] - alone).norm() > 0.2 * alone.norm()
    ours = performer()[0]
    q, k, v = tokens(length=20)
    valid = valid.expand(2, -1)
    assert_close(ours(q, k, v, valid=valid)[:, :, :12], ours(q[:, :, :12], k[:, :, :12], v[:, :, :12]))


def test_their_causal_form_sees_the_future():
    """Its keys share one maximum over the sequence, which meets an epsilon; ours has a running maximum."""
    ours, W = performer(causal=True)
    q, k, v = tokens()
    later = k.clone()
    later[:, :, 40:] *= 6

    def causal(keys):
        return theirs.causal_linear_attention_noncuda(*their_softmax_features(q, keys, W), v)[:, :, :40]

    assert (causal(later) - causal(k)).norm() > 0.1 * causal(k).norm()
    assert_close(ours(q, later, v)[:, :, :40], ours(q, k, v)[:, :, :40])


def test_their_directions_are_not_evenly_distributed():
    """QR without the signs of R: the trace of a Haar matrix has mean 0, and of theirs far below it."""
    traces = torch.stack([theirs.orthogonal_matrix_chunk(4).trace() for _ in range(2000)])
    assert traces.mean() < -0.5
    ours = haar(2000, 4, generator=torch.Generator().manual_seed(0)).diagonal(dim1=1, dim2=2).sum(1)
    assert ours.mean().abs() < 5 / 2000**0.5
