"""Against Hugging Face's port of the authors' code and against reformer-pytorch, with our rotations.

reformer-pytorch divides scores by sqrt(d), which the authors do not. It is given as many times larger inputs,
which makes its queries larger, but not its keys, whose length is one.
"""

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.reformer import Reformer

theirs = pytest.importorskip("reformer_pytorch.reformer_pytorch")
hugging_face = pytest.importorskip("transformers.models.reformer.modeling_reformer")

LENGTH, HEAD_DIM, BUCKET, ROUNDS = 48, 8, 6, 3


def ours(*, causal, **options):
    dims = Dims(heads=1, head_dim=HEAD_DIM)
    return Reformer(dims, causal=causal, bucket=BUCKET, rounds=ROUNDS, **options).double()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, LENGTH, HEAD_DIM, dtype=torch.float64, generator=generator).unbind(0)


def attend(mechanism, q, v):
    return mechanism(q[:, None], v[:, None])[:, 0]


def scaled(attention):
    """reformer-pytorch's attention with scores that are not divided by sqrt(d), and its buckets."""

    def scaled_attend(q, v):
        out, _, *buckets = attention(HEAD_DIM**0.5 * q, v)
        return out, *buckets

    return scaled_attend


@pytest.fixture
def rotations(monkeypatch):
    """Has others draw the rotations of one of ours."""

    def use(mechanism):
        R = mechanism.R[0, :, :, : LENGTH // BUCKET // 2].movedim(0, 1)[None]  # 1 d r f
        monkeypatch.setattr(torch, "randn", lambda *shape, **_: R)

    return use


@pytest.fixture
def lsh(rotations):
    """reformer-pytorch's attention, hashing with the rotations of one of ours."""

    def build_theirs(mechanism, **options):
        rotations(mechanism)
        return scaled(theirs.LSHAttention(bucket_size=BUCKET, n_hashes=ROUNDS, **options).eval())

    return build_theirs


@pytest.fixture
def transformers_lsh(rotations):
    """Hugging Face's attention of queries and values that stand side by side in its hidden states."""

    def build_theirs(mechanism, *, causal, bucket=BUCKET):
        rotations(mechanism)
        config = hugging_face.ReformerConfig(
            attention_head_size=HEAD_DIM,
            num_attention_heads=1,
            hidden_size=2 * HEAD_DIM,
            lsh_attn_chunk_length=bucket,
            num_hashes=ROUNDS,
            num_buckets=LENGTH // BUCKET,
            is_decoder=causal,
        )
        attention = hugging_face.LSHSelfAttention(config).double().eval()
        one = torch.eye(2 * HEAD_DIM, dtype=torch.float64)
        attention.load_state_dict({"query_key.weight": one[:HEAD_DIM], "value.weight": one[HEAD_DIM:]})

        def attend_theirs(q, v):
            found = attention(torch.cat([q, v], -1))
            return found.hidden_states, None if found.buckets is None else found.buckets.flatten(1)

        return attend_theirs

    return build_theirs


def beyond_the_first_chunk(buckets):
    """The tokens that stand in no round's first chunk, which with others looks round to the last of another.

    The paper (figure 2) only looks back.
    """
    place = buckets.unflatten(1, (ROUNDS, LENGTH)).argsort(dim=-1, stable=True).argsort(dim=-1)
    later = (place >= BUCKET).all(1)
    assert 0 < later.sum() < later.numel()
    return later


@pytest.mark.parametrize("causal", [True, False])
def test_scores_are_those_of_hugging_face(transformers_lsh, causal):
    q, v = inputs()
    mechanism = ours(causal=causal, strays=True, duplicates=True)
    expected, buckets = transformers_lsh(mechanism, causal=causal)(q, v)
    later = beyond_the_first_chunk(buckets)
    # they keep the mean square of a key above 1e-6
    assert_close(attend(mechanism, q, v)[later], expected[later], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_within_a_chunk_hugging_face_has_the_same_full_attention(transformers_lsh, causal):
    q, v = inputs()
    mechanism = Reformer(Dims(heads=1, head_dim=HEAD_DIM), causal=causal, bucket=LENGTH).double()
    expected, _ = transformers_lsh(mechanism, causal=causal, bucket=LENGTH)(q, v)
    assert_close(attend(mechanism, q, v), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_within_buckets_without_duplicates_agrees(lsh, causal):
    q, v = inputs()
    mechanism = ours(causal=causal)
    other = lsh(mechanism, causal=causal, allow_duplicate_attention=False, attend_across_buckets=False)
    assert_close(attend(mechanism, q, v), other(q, v)[0], rtol=1e-6, atol=1e-6)  # an epsilon under a log


@pytest.mark.parametrize("causal", [True, False])
def test_strays_agree_but_in_first_chunks_where_theirs_look_round_to_the_last(lsh, causal):
    q, v = inputs()
    mechanism = ours(causal=causal, strays=True, duplicates=True)
    found, (expected, buckets) = attend(mechanism, q, v), lsh(mechanism, causal=causal)(q, v)
    later = beyond_the_first_chunk(buckets)
    assert_close(found[later], expected[later])
    assert (found[~later] - expected[~later]).abs().amax() > 0.1


@pytest.mark.parametrize("causal", [True, False])
def test_one_chunk_is_their_full_attention_with_shared_queries_and_keys(causal):
    q, v = inputs()
    mechanism = Reformer(Dims(heads=1, head_dim=HEAD_DIM), causal=causal, bucket=LENGTH, rounds=2).double()
    assert_close(attend(mechanism, q, v), scaled(theirs.FullQKAttention(causal=causal))(q, v)[0])


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
