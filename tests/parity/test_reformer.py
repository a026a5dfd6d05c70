"""Against reformer-pytorch, with its rotations replaced by ours."""

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.reformer import Reformer

theirs = pytest.importorskip("reformer_pytorch.reformer_pytorch")

LENGTH, HEAD_DIM, BUCKET, ROUNDS = 48, 8, 6, 3


def ours(*, causal, **options):
    dims = Dims(heads=1, head_dim=HEAD_DIM)
    return Reformer(dims, causal=causal, bucket=BUCKET, rounds=ROUNDS, **options).double()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, LENGTH, HEAD_DIM, dtype=torch.float64, generator=generator).unbind(0)


def attend(mechanism, q, v):
    return mechanism(q[:, None], v[:, None])[:, 0]


@pytest.fixture
def lsh(monkeypatch):
    """Their attention, hashing with the rotations of one of ours."""

    def build_theirs(mechanism, **options):
        R = mechanism.R[0, :, :, : LENGTH // BUCKET // 2].movedim(0, 1)[None]  # 1 d r f
        monkeypatch.setattr(theirs.torch, "randn", lambda *shape, **_: R)
        return theirs.LSHAttention(bucket_size=BUCKET, n_hashes=ROUNDS, **options).eval()

    return build_theirs


@pytest.mark.parametrize("causal", [True, False])
def test_attention_within_buckets_without_duplicates_agrees(lsh, causal):
    q, v = inputs()
    mechanism = ours(causal=causal)
    other = lsh(mechanism, causal=causal, allow_duplicate_attention=False, attend_across_buckets=False)
    assert_close(attend(mechanism, q, v), other(q, v)[0], rtol=1e-6, atol=1e-6)  # an epsilon under a log


@pytest.mark.parametrize("causal", [True, False])
def test_strays_agree_but_in_first_chunks_where_theirs_look_round_to_the_last(lsh, causal):
    """Theirs shows the first chunk of a round the last of another; the paper (figure 2) only looks back."""
    q, v = inputs()
    mechanism = ours(causal=causal, strays=True, duplicates=True)
    found, (expected, _, buckets) = attend(mechanism, q, v), lsh(mechanism, causal=causal)(q, v)
    place = buckets.unflatten(1, (ROUNDS, LENGTH)).argsort(dim=-1, stable=True).argsort(dim=-1)
    later = (place >= BUCKET).all(1)
    assert 0 < later.sum() < later.numel()
    assert_close(found[later], expected[later])
    assert (found[~later] - expected[~later]).abs().amax() > 0.1


@pytest.mark.parametrize("causal", [True, False])
def test_one_chunk_is_their_full_attention_with_shared_queries_and_keys(causal):
    q, v = inputs()
    mechanism = Reformer(Dims(heads=1, head_dim=HEAD_DIM), causal=causal, bucket=LENGTH, rounds=2).double()
    assert_close(attend(mechanism, q, v), theirs.FullQKAttention(causal=causal)(q, v)[0])


def test_theirs_is_random_when_evaluated_and_ours_is_not():
    q, v = inputs()
    other = theirs.LSHAttention(bucket_size=BUCKET, n_hashes=ROUNDS).eval()
    assert (other(q, v)[0] - other(q, v)[0]).abs().amax() > 0.1
    mechanism = ours(causal=False).eval()
    assert_close(attend(mechanism, q, v), attend(mechanism, q, v), rtol=0, atol=0)


def test_theirs_wants_an_even_number_of_full_chunks_and_ours_takes_any_length():
    q, v = (x[:, :45] for x in inputs())
    with pytest.raises(AssertionError, match="divisible"):
        theirs.LSHAttention(bucket_size=BUCKET, n_hashes=ROUNDS)(q, v)
    assert attend(ours(causal=False), q, v).shape == v.shape
