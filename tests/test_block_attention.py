"""Attention to chosen blocks: dense attention under the same mask, whoever computes it."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.ops import using
from subquad.ops.block_attention import best_before, block_attention, gathered_blocks
from subquad.ops.native import library

LENGTH, BLOCK, EACH = 310, 8, 5  # so that each block is chosen by several tiles of queries


@pytest.fixture(params=[1, 30], ids=["scores in range", "scores out of range"])
def inputs(request):
    """Queries, keys and values, and some blocks before each query's own."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, LENGTH, 6, dtype=torch.float64, generator=generator) for _ in range(3))
    scores = torch.rand(2, 3, LENGTH, -(-LENGTH // BLOCK), generator=generator)
    return request.param * q, k, v, best_before(scores, torch.arange(LENGTH)[None] // BLOCK, EACH)


def dense(tokens, chosen):
    q, k, v = tokens
    i = torch.arange(LENGTH)
    blocks = i // BLOCK
    seen = (blocks[:, None] == blocks) | (chosen[..., None] == blocks).any(-2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen & (i <= i[:, None]))


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("reference", torch.float64), ("parallel", torch.float64), ("cpu", torch.float32)],
)
def test_it_is_dense_attention_to_the_same_pairs_in_each_backend(inputs, backend, dtype):
    *tokens, chosen = inputs
    if backend == "cpu" and library.load_library()[0] is None:
        pytest.skip(library.load_library()[1])
    leaves = [x.to(dtype).requires_grad_() for x in tokens]
    with using(backend):
        out = block_attention(leaves[0], leaves[1], leaves[2], chosen, block=BLOCK)
        grads = torch.autograd.grad(out.sin().sum(), leaves)
    exact = dense([x.double() for x in leaves], chosen)
    expected = torch.autograd.grad(exact.sin().sum(), leaves)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-7
    for ours, theirs in zip((out, *grads), (exact.to(dtype), *expected), strict=True):
        assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_gathered_blocks_are_the_same_queries_by_themselves(inputs):
    q, k, v, chosen = inputs
    exact = dense((q, k, v), chosen)
    i = torch.stack([torch.arange(100, 116), torch.arange(290, 306)])
    q, chosen, exact = [torch.stack([x[b, :, i[b]] for b in range(2)]) for x in (q, chosen, exact)]
    assert_close(gathered_blocks(q, k, v, chosen, block=BLOCK, i=i), exact)
