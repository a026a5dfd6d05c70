"""Sparse patterns against independent implementations, weights copied."""

import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.longformer import LongformerAttention
from subquad.patterns import CAUSAL, Blocks, Dilated, Global, Local, attend

DIM, HEADS, LENGTH, WINDOW = 8, 2, 24, 6


@pytest.fixture
def longformer():
    """Their layer, and a function from their mask (-1 padding, 0 local, 1 global) to what they give."""
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LongformerConfig
        from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
    config = LongformerConfig(hidden_size=DIM, num_attention_heads=HEADS, attention_window=[WINDOW])
    layer = LongformerSelfAttention(config, layer_id=0).eval()

    def run(x, mask):
        return layer(
            x,
            attention_mask=mask * 10_000.0,
            is_index_masked=mask < 0,
            is_index_global_attn=mask > 0,
            is_global_attn=bool((mask > 0).any()),
        )[0]

    return layer, run


def our_longformer(theirs, *, globals):
    """Our mechanism behind their projections, from tokens to tokens; `padding` is True at padding."""
    mechanism = LongformerAttention(
        Dims(heads=HEADS, head_dim=DIM // HEADS), causal=False, window=WINDOW, globals=globals
    )
    names = ("query", "key", "value", "query_global", "key_global", "value_global")
    linears = [getattr(theirs, name) for name in names]
    for linear in linears:
        nn.init.normal_(linear.weight, std=0.5)  # not uniform attention, nor scores that round to 1e-5
        nn.init.normal_(linear.bias, std=0.5)

    def run(x, *, padding=None):
        inputs = (linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in linears)
        return mechanism(*inputs, valid=None if padding is None else ~padding).transpose(1, 2).flatten(2)

    return run


@pytest.mark.parametrize("globals", [1, 3])
def test_longformer_is_that_of_transformers(longformer, globals):
    theirs, run = longformer
    ours = our_longformer(theirs, globals=globals)
    x = torch.randn(2, LENGTH, DIM)
    mask = (torch.arange(LENGTH) < globals).long().expand(2, -1)
    assert_close(ours(x), run(x, mask), rtol=1e-5, atol=1e-5)


def test_longformer_is_that_of_transformers_with_padding_at_the_end(longformer):
    theirs, run = longformer
    ours = our_longformer(theirs, globals=2)
    x, at = torch.randn(2, LENGTH, DIM), torch.arange(LENGTH)
    padding = torch.stack([at >= 24, at >= 17])
    mask = (at < 2).long().expand(2, -1).masked_fill(padding, -1)
    keep = ~padding[..., None]
    out = ours(x, padding=padding)
    assert_close(out * keep, run(x, mask) * keep, rtol=1e-5, atol=1e-5)


def test_longformer_of_transformers_counts_padding_inside_its_window(longformer):
    """Ours counts real tokens, so that padding changes nothing; theirs gives its places to the window."""
    theirs, run = longformer
    ours = our_longformer(theirs, globals=2)
    x, at = torch.randn(1, LENGTH, DIM), torch.arange(LENGTH)[None]
    padding = (at >= 8) & (at < 12)
    keep = ~padding[0]
    out = ours(x, padding=padding)[:, keep]
    without = x[:, keep]
    assert_close(out, ours(without))
    mask = (at < 2).long().masked_fill(padding, -1)
    assert (out - run(x, mask)[:, keep]).abs().max() > 0.01


def grid(mask_mod, n):
    at = torch.arange(n)
    return mask_mod(torch.tensor(0), torch.tensor(0), at[:, None], at[None, :])


@pytest.mark.parametrize("n", [1, 5, 40])
def test_patterns_are_the_masks_of_attention_gym(n):
    masks = pytest.importorskip("attn_gym.masks")
    from attn_gym.masks.dilated_sliding_window import generate_dilated_sliding_window
    from attn_gym.masks.global_sliding_window import generate_global_sliding_window

    assert_close((Local(7) & CAUSAL).mask(n), grid(masks.generate_sliding_window(7), n))
    assert_close(CAUSAL.mask(n), grid(masks.causal_mask, n).expand(n, n))
    assert_close(Dilated(3, 4).mask(n), grid(generate_dilated_sliding_window(12, 4), n))
    is_global = torch.arange(n) < 3
    theirs = generate_global_sliding_window(4, is_global)
    assert_close((Local(4) | Global(3)).mask(n), grid(theirs, n))


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_a_window_are_local_attention(causal):
    """Theirs is coarser than a window: a query sees its whole block and those beside it."""
    package = pytest.importorskip("local_attention")
    theirs = package.LocalAttention(
        window_size=5, causal=causal, look_backward=1, look_forward=0 if causal else 1, dropout=0.0
    )
    q, k, v = torch.randn(3, 2, HEADS, 30, 4).unbind(0)
    pattern = Blocks(Local(1), 5) & CAUSAL if causal else Blocks(Local(1), 5)
    assert_close(attend(pattern, q, k, v, valid=None), theirs(q, k, v), rtol=1e-5, atol=2e-6)


def test_a_causal_window_is_local_attention_of_the_exact_size():
    package = pytest.importorskip("local_attention")
    theirs = package.LocalAttention(window_size=5, causal=True, exact_windowsize=True, dropout=0.0)
    q, k, v = torch.randn(3, 2, HEADS, 30, 4).unbind(0)
    assert_close(attend(Local(5) & CAUSAL, q, k, v, valid=None), theirs(q, k, v), rtol=1e-5, atol=2e-6)


def test_bigbird_of_transformers_counts_its_first_block_again_for_each_random_one():
    """In evaluation all its random blocks are block 0, whose weight then counts 1 + r times.

    Without that they agree: with the multiplicity put into plain softmax attention over our pattern without
    random blocks, theirs comes out. Ours is right, for a union of blocks has each once (the paper's sets).
    """
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BigBirdConfig, BigBirdModel
        from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
    block, blocks, random = 4, 14, 3
    config = BigBirdConfig(
        hidden_size=DIM, num_attention_heads=HEADS, block_size=block, num_random_blocks=random
    )
    theirs = BigBirdBlockSparseAttention(config, seed=1).eval()
    x = torch.randn(2, blocks * block, DIM)
    masks = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(2, blocks * block), block)
    names = ("from_blocked_mask", "band_mask", "from_mask", "to_mask")
    given = dict(zip(names, masks, strict=True))
    with torch.no_grad():
        out = theirs(x, **given, to_blocked_mask=given["from_blocked_mask"])[0]
        q, k, v = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear in (theirs.query, theirs.key, theirs.value)
        )
    pattern = Blocks(Local(1) | Global(1, last=1), block)
    times = pattern.mask(blocks * block).double()
    times[block:-block, :block] += random
    weights = times * (q @ k.mT / q.shape[-1] ** 0.5).exp()
    again = (weights @ v.double() / weights.sum(-1, keepdim=True)).transpose(1, 2).flatten(2)
    once = attend(pattern, q, k, v, valid=None).transpose(1, 2).flatten(2)
    assert_close(out.double(), again, rtol=1e-5, atol=2e-6)
    assert (out - once).abs().max() > 1e-3
