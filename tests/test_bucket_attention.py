"""Attention within buckets against a mask over all pairs, in both tiers, and hashing tokens in blocks."""

from contextlib import nullcontext
from inspect import unwrap
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from subquad.mechanism import Dims
from subquad.mechanisms.reformer import Reformer
from subquad.ops import hashing
from subquad.ops.backends import using
from subquad.ops.bucket_attention import bucket_attention
from subquad.ops.bucket_attention.rounds import ALONE
from subquad.ops.bucket_attention.sorting import Buckets
from subquad.ops.native.library import missing

FLAGS = ("causal", "last_n_only", "self_only_if_alone", "count_duplicates")
# but for the last two together: float32 does not tell ALONE plus the logarithm of a few from ALONE
CASES = [flags for flags in product([False, True], repeat=4) if not all(flags[2:])]
# batch, heads, rounds, tokens, width of queries and of values, size of chunks
SIZES = [(2, 3, 3, 70, 20, 12, 8), (1, 2, 4, 200, 64, 64, 64), (2, 1, 1, 90, 5, 3, 50), (1, 1, 2, 1, 8, 8, 1)]


@pytest.fixture(params=["cpu", "reference", "parallel", "float64"])
def tier(request):
    if request.param == "cpu" and (reason := missing()):
        pytest.skip(reason)
    with using(request.param) if request.param in ("reference", "parallel") else nullcontext():
        yield request.param


def inputs(sizes):
    """Numbers that float32 holds, not contiguous, and buckets of which some are larger than a chunk."""
    b, h, r, n, d, e, size = sizes
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(b, n, h, width, generator=generator).transpose(1, 2) for width in (d, d, e))
    bucket = torch.randint(0, max(1, n // size), (b, h, r, n), generator=generator)
    buckets = Buckets.of(bucket, size=size)
    labels = 2 * bucket + buckets.place // size
    grad = torch.randn(b, h, n, e, generator=generator).double()
    return q.double(), k.double(), v.double(), buckets, labels, grad


def exact(q, k, v, buckets, labels, *, causal, last_n_only, self_only_if_alone, count_duplicates):
    """A softmax over all pairs, a pair weighing as often as rounds count it."""
    n = q.shape[2]
    chunk, back = buckets.place // buckets.size, labels[..., :, None] - labels[..., None, :]
    seen = (back == 0) | (back == 1)
    if not count_duplicates:
        seen &= seen.cumsum(2) == 1
    near = chunk[..., :, None] - chunk[..., None, :]
    seen &= (near == 0) | (near == 1)
    if causal:
        seen &= torch.ones(n, n, dtype=torch.bool).tril()
    if last_n_only:
        places = buckets.place[..., :, None] - buckets.place[..., None, :]
        seen &= (places >= 0) & (places < buckets.size)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if self_only_if_alone:
        scores = scores.masked_fill(torch.eye(n, dtype=torch.bool), ALONE)
    return (scores + seen.sum(2).log()).softmax(-1) @ v


@pytest.mark.parametrize("flags", CASES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_each_token_gets_what_those_that_it_sees_give(sizes, flags, tier):
    q, k, v, buckets, labels, grad = inputs(sizes)
    options = dict(zip(FLAGS, flags, strict=True))
    tokens = [x.requires_grad_() for x in (q, k, v)]
    expected = exact(q, k, v, buckets, labels, **options)
    slopes = torch.autograd.grad(expected, tokens, grad)
    dtype = torch.float64 if tier == "float64" else torch.float32
    given = [x.detach().to(dtype).requires_grad_() for x in tokens]
    out = bucket_attention(
        given[0], given[1], given[2], order=buckets.order, labels=labels, size=buckets.size, **options
    )
    found = torch.autograd.grad(out, given, grad.to(dtype))
    for one, other in zip((out, *found), (expected, *slopes), strict=True):
        assert_close(one, other.to(dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("short", range(5))
def test_shapes_that_do_not_fit_are_refused_before_compiled_code_reads_past_their_end(short):
    places = torch.arange(16).expand(1, 2, 1, 16)
    given = [*torch.randn(3, 1, 2, 16, 8), places, places]
    given[short] = given[short].narrow(3 if short > 2 else 2, 0, 9)
    q, k, v, order, labels = given
    with pytest.raises(ValueError, match="do not fit the queries"):
        unwrap(bucket_attention)(q, k, v, order=order, labels=labels, size=4)


@pytest.mark.parametrize("causal", [False, True])
def test_one_sequence_is_split_among_threads(causal, monkeypatch):
    if reason := missing():
        pytest.skip(reason)
    *tokens, buckets, labels, grad = inputs((1, 1, 3, 300, 16, 8, 16))
    given, results = [x.float().requires_grad_() for x in tokens], []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        out = bucket_attention(
            *given,
            order=buckets.order,
            labels=labels,
            size=buckets.size,
            causal=causal,
            self_only_if_alone=True,
        )
        results.append((out, *torch.autograd.grad(out, given, grad.float())))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("valid", [False, True])
def test_buckets_do_not_depend_on_the_blocks_that_tokens_are_hashed_in(valid, monkeypatch):
    mechanism = Reformer(Dims(heads=2, head_dim=4), causal=False, bucket=1, rounds=2).double()
    q = torch.randn(2, 2, 150, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count = torch.tensor([150, 90]) if valid else None
    whole = mechanism._hash(q, count)
    monkeypatch.setattr(hashing, "MAX_COORDINATES", 1000)
    assert torch.equal(mechanism._hash(q, count), whole)
    assert len(whole.unique()) > 64
