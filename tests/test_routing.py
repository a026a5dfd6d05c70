"""What routing is with one cluster, whom it leaves out, and how its centroids learn, alone and together."""

import copy
import os
import pickle

import pytest
import torch
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.routing import RoutingAttention

HEADS, HEAD_DIM = 2, 4


def routing(*, causal=False, **options):
    return RoutingAttention(Dims(heads=HEADS, head_dim=HEAD_DIM), causal=causal, **options).double()


def inputs(length, *, seed=1, batch=2):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, HEADS, length, HEAD_DIM)
    return torch.randn(shape, dtype=torch.float64, generator=generator).unbind(0)


def normalised(x):
    return F.layer_norm(x, x.shape[-1:])


@pytest.mark.parametrize("causal", [True, False])
def test_one_cluster_is_full_attention_of_normalised_queries_and_keys(causal):
    q, k, v = inputs(20)
    found = routing(causal=causal, clusters=1, window=20)(q, k, v)
    exact = F.scaled_dot_product_attention(normalised(q), normalised(k), v, is_causal=causal)
    assert_close(found, exact)


def test_a_query_that_no_cluster_took_gets_zeros_and_the_others_do_not():
    q, k, v = inputs(24)
    v = v + 5
    mechanism = routing(clusters=6)
    out = mechanism(q, k, v)
    nearest = (normalised(q) @ mechanism.mu.mT).argsort(2, descending=True)[:, :, :4]
    taken = torch.zeros(2, HEADS, 24, dtype=torch.bool).scatter(2, nearest.flatten(2), True)
    assert 0 < (~taken).sum() < taken.sum()
    assert not out[~taken].any()
    assert (out[taken].abs() > 1).any(-1).all()


def test_every_causal_token_attends_at_least_to_itself():
    q, k, v = inputs(24)
    ones = torch.ones_like(v)
    assert_close(routing(causal=True, clusters=6, window=2)(q, k, ones), ones)
    assert_close(routing(causal=True, clusters=6, window=1)(q, k, v), v)


def test_a_cluster_forgets_all_but_its_last_tokens():
    q, k, v = inputs(1)
    q, k = (x.expand(-1, -1, 24, -1) for x in (q, k))  # one cluster gets all
    v = inputs(24)[2]
    found = routing(causal=True, clusters=3, window=5)(q, k, v)
    assert_close(found[:, :, 20], v[:, :, 16:21].mean(2))


@pytest.mark.parametrize("window", [3, 7, 40, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_windows_that_divide_no_length_mean_what_the_definition_says(causal, window):
    inputs_ = inputs(45)
    mechanism = routing(causal=causal, clusters=4, window=window)
    assert_close(mechanism(*inputs_), mechanism.definition(*inputs_))


def test_a_stream_longer_than_its_chunks_is_a_sequence():
    q, k, v = inputs(150)
    mechanism = routing(causal=True, clusters=2, window=50).eval()
    whole, state = mechanism.step(q[:, :, :100], k[:, :, :100], v[:, :, :100])
    rest, _ = mechanism.step(q[:, :, 100:], k[:, :, 100:], v[:, :, 100:], state=state)
    assert_close(torch.cat([whole, rest], 2), mechanism(q, k, v))


def means(mechanism, x, *, real=None):
    """The mean of each centroid's tokens, or itself where it got none."""
    found = F.normalize(mechanism.mu, dim=-1).clone()
    for head in range(HEADS):
        tokens = (normalised(x)[:, head] / HEAD_DIM**0.5).flatten(0, 1)
        tokens = tokens if real is None else tokens[real]
        nearest = (tokens @ found[head].mT).argmax(-1)
        for cluster in nearest.unique():
            found[head, cluster] = tokens[nearest == cluster].mean(0)
    return found


@pytest.mark.parametrize("causal", [True, False])
def test_an_update_moves_centroids_by_their_tokens_means(causal):
    q, k, v = inputs(24)
    mechanism = routing(causal=causal, clusters=3, window=5, decay=0.9)
    expected = 0.9 * mechanism.mu + 0.05 * (means(mechanism, q) + means(mechanism, k))
    mechanism(q, k, v)
    mechanism.update()
    assert_close(mechanism.mu, expected)


def test_padding_teaches_nothing():
    q, k, v = inputs(24)
    valid = torch.rand(2, 24, generator=torch.Generator().manual_seed(2)) < 0.6
    mechanism = routing(clusters=3, window=5, decay=0.9)
    real = valid.flatten()
    expected = 0.9 * mechanism.mu + 0.05 * (means(mechanism, q, real=real) + means(mechanism, k, real=real))
    mechanism(q, k.masked_fill(~valid[:, None, :, None], torch.nan), v, valid=valid)
    mechanism.update()
    assert_close(mechanism.mu, expected)


def test_batches_gathered_before_an_update_count_as_one():
    q, k, v = inputs(24)
    whole, parts = (routing(clusters=3, window=5, decay=0.5) for _ in range(2))
    whole(q, k, v)
    for row in (slice(0, 1), slice(1, 2)):
        parts(q[row], k[row], v[row])
    for mechanism in (whole, parts):
        mechanism.update()
    assert_close(parts.mu, whole.mu)


def test_a_stream_teaches_what_its_sequence_does():
    q, k, v = inputs(24)
    whole, stream = (routing(causal=True, clusters=3, window=5, decay=0.5) for _ in range(2))
    whole(q, k, v)
    _, state = stream.step(q[:, :, :9], k[:, :, :9], v[:, :, :9])
    stream.step(q[:, :, 9:], k[:, :, 9:], v[:, :, 9:], state=state)
    for mechanism in (whole, stream):
        mechanism.update()
    assert_close(stream.mu, whole.mu)


def test_nothing_is_learnt_in_eval_mode_nor_before_an_update_nor_twice():
    mechanism = routing(clusters=3, window=5, decay=0.5)
    drawn = mechanism.mu.clone()
    mechanism.eval()(*inputs(24))
    mechanism.update()
    assert_close(mechanism.mu, drawn, rtol=0, atol=1e-15)
    mechanism.train()(*inputs(24))
    assert_close(mechanism.mu, drawn, rtol=0, atol=1e-15)
    mechanism.update()
    learnt = mechanism.mu.clone()
    assert not torch.allclose(learnt, drawn)
    mechanism.update()
    assert_close(mechanism.mu, learnt)


def test_the_penalty_draws_queries_and_keys_to_their_centroids():
    q, k, v = (x.requires_grad_() for x in inputs(24))
    mechanism = routing(clusters=3, window=5, commitment=1.0)
    mechanism(q, k, v)
    distance = 0.0
    for x in (q, k):
        tokens = normalised(x)[..., None, :] / HEAD_DIM**0.5
        distance = distance + (tokens - mechanism.mu[:, None]).square().sum(-1).amin(-1).mean() / 2
    assert_close(mechanism.penalty(), distance)
    gradients = torch.autograd.grad(mechanism.penalty(), (q, k))
    assert all(gradient.any() for gradient in gradients)
    assert not mechanism.mu.requires_grad


def test_a_mechanism_that_has_run_can_be_copied():
    mechanism = routing(clusters=3, window=5)
    q, k, v = (x.requires_grad_() for x in inputs(24))
    mechanism(q, k, v)
    for twin in (copy.deepcopy(mechanism), pickle.loads(pickle.dumps(mechanism))):
        mechanism_again, twin_again = mechanism.eval()(q, k, v), twin.eval()(q, k, v)
        assert_close(twin_again, mechanism_again)


def one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    mechanism = routing(clusters=3, window=5, decay=0.5)
    q, k, v = (x[rank : rank + 1] for x in inputs(24))
    mechanism(q, k, v)
    mechanism.update()
    torch.save(mechanism.mu, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # a thread of gloo that outlives the interpreter aborts the process now and then


@pytest.mark.slow
def test_ranks_agree_on_centroids_as_if_they_were_one(tmp_path):
    spawn(one_rank, args=(tmp_path,), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert_close(found[0], found[1], rtol=0, atol=0)
    alone = routing(clusters=3, window=5, decay=0.5)
    alone(*inputs(24))
    alone.update()
    assert_close(found[0], alone.mu)


@pytest.mark.parametrize("options", [{"clusters": 0}, {"window": 0}, {"decay": 1.5}, {"commitment": -1.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="'routing': "):
        routing(**options)
