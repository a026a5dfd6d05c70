"""What hashing promises on average, and what Reformer is where it has nothing to miss."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad import Dims, MultiheadAttention
from subquad.mechanisms.reformer import Reformer
from subquad.ops.hashing import hash_sizes

HEADS, HEAD_DIM = 2, 4
PAIRS, ROTATIONS = 64, 400


def reformer(*, causal=False, **options):
    return Reformer(Dims(heads=HEADS, head_dim=HEAD_DIM), causal=causal, **options).double()


def inputs(length, *, seed=1, batch=2):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, batch, HEADS, length, HEAD_DIM)
    return torch.randn(shape, dtype=torch.float64, generator=generator).unbind(0)


def shared(q, v, *, causal):
    """Attention of each token to all others, with queries for keys; the first sees itself."""
    scores = q @ F.normalize(q, dim=-1).mT
    scores = scores.masked_fill(torch.eye(q.shape[2], dtype=torch.bool), -1e5)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ v


def in_one_bucket(length):
    """Tokens around one direction, too close together for a hash to part."""
    q, v = inputs(length)
    return 1 + 1e-4 * q, v


def meetings(theta, *, buckets):
    """How often two vectors at an angle fall into one bucket: a mean for each of many rotations."""
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, PAIRS, HEAD_DIM, dtype=torch.float64, generator=generator)
    x = F.normalize(x, dim=-1)
    other = F.normalize(other - (other * x).sum(-1, keepdim=True) * x, dim=-1)
    row = torch.cat([x, math.cos(theta) * x + math.sin(theta) * other])[None, None]
    mechanism = reformer(bucket=2 * PAIRS // buckets, rounds=ROTATIONS)
    found = mechanism._hash(row, None)[0, 0]
    assert found.max() == buckets - 1
    return (found[:, :PAIRS] == found[:, PAIRS:]).double().mean(1)


@pytest.mark.parametrize("theta", [0.3, 1.0, 2.0, 2.8])
def test_two_buckets_part_vectors_as_often_as_their_angle_says(theta):
    found = meetings(theta, buckets=2)
    assert (found.mean() - (1 - theta / math.pi)).abs() < 4 * found.std() / ROTATIONS**0.5


def test_many_buckets_keep_the_near_together_and_part_the_far():
    found = [meetings(theta, buckets=16).mean() for theta in (0.05, 0.3, 0.8, 1.6)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.85
    assert found[-1] < 0.1


@pytest.mark.parametrize("length", [3, 7, 16])
@pytest.mark.parametrize("causal", [True, False])
def test_rows_within_a_chunk_get_full_attention(causal, length):
    q, v = inputs(length)
    assert_close(reformer(causal=causal, bucket=16)(q, v), shared(q, v, causal=causal))


@pytest.mark.parametrize("strays", [True, False])
def test_one_bucket_in_two_chunks_gets_full_causal_attention(strays):
    q, v = in_one_bucket(24)
    found = reformer(causal=True, bucket=12, rounds=3, strays=strays)(q, v)
    assert_close(found, shared(q, v, causal=True))


def test_the_first_chunk_does_not_see_the_last():
    q, v = in_one_bucket(24)
    mechanism = reformer(bucket=6, rounds=2, strays=True)
    changed = torch.cat([v[:, :, :18], v[:, :, 18:] + 9], 2)
    assert_close(mechanism(q, changed)[:, :, :6], mechanism(q, v)[:, :, :6])


def test_a_pair_found_in_many_rounds_counts_once():
    q, v = in_one_bucket(20)
    once, often = (reformer(bucket=20, rounds=rounds)(q, v) for rounds in (1, 5))
    assert_close(often, once)


def test_more_rounds_come_nearer_to_full_attention():
    q, v = (4 * x for x in inputs(96))
    exact = shared(q, v, causal=False)
    errors = [(reformer(bucket=8, rounds=rounds)(q, v) - exact).norm() for rounds in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("options", [{}, {"strays": True}, {"duplicates": True}, {"rounds": 1}])
@pytest.mark.parametrize("causal", [True, False])
def test_every_option_means_what_its_definition_says(causal, options):
    q, v = inputs(29)
    mechanism = reformer(causal=causal, **{"bucket": 4, "rounds": 3, **options})
    assert_close(mechanism(q, v), mechanism.definition(q, v))


@pytest.mark.parametrize("length", [65, 129, 150])
def test_buckets_beyond_one_hash_are_those_of_the_definition(length):
    q, v = inputs(length, batch=1)
    mechanism = reformer(bucket=1, rounds=2)
    assert_close(mechanism(q, v), mechanism.definition(q, v))


def test_hashes_multiply_to_no_fewer_buckets_than_chunks_and_few_more():
    for chunks in (1, 2, 3, 64, 65, 66, 1000, 4097, 300_000):
        found = math.prod(hash_sizes(3 * chunks, 3))
        assert chunks <= found <= max(chunks + 1, 1.15 * chunks), f"{found} buckets for {chunks} chunks"


def test_at_the_start_a_row_is_no_mean_of_its_keys():
    torch.manual_seed(0)
    layer, given = MultiheadAttention(128, 2, "reformer"), {}
    layer.mechanism.register_forward_pre_hook(
        lambda mechanism, args, named: given.update(named), with_kwargs=True
    )
    x = torch.randn(4, 64, 128)
    layer(x, x, x)
    one_hot = torch.eye(64).expand(4, 2, 64, 64)  # one chunk, so that a token sees all 63 others
    weights = layer.mechanism(given["q"], one_hot)
    seen = torch.special.entr(weights).sum(-1).exp().mean()
    assert 40 < seen < 52  # scores over sqrt(d) leave 62.7


def test_calls_repeat_in_training_and_redraw_changes_them():
    q, v = inputs(24)
    mechanism = reformer(bucket=3).train()
    before = mechanism(q, v)
    assert_close(mechanism(q, v), before, rtol=0, atol=0)
    mechanism.redraw(generator=torch.Generator().manual_seed(1))
    assert not torch.equal(mechanism(q, v), before)


def test_layers_hash_differently():
    first, second = (Reformer(Dims(heads=1, head_dim=4, layer=n), causal=False) for n in (0, 1))
    assert not torch.equal(first.R, second.R)


@pytest.mark.parametrize("options", [{"bucket": 0}, {"rounds": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        reformer(**options)
