"""Native sparse attention beside flash-linear-attention's plain PyTorch.

There a block is compressed to its mean, blocks do not overlap, and the branches share keys and values.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.nsa import NsaAttention, NsaInputs

with warnings.catch_warnings():  # it warns that there is no GPU, and no flash-attn
    warnings.simplefilter("ignore")
    pytest.importorskip("fla.ops.nsa.naive", exc_type=ImportError)
    from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk

H, D, BLOCK, TOP, WINDOW = 2, 8, 8, 5, 12
LENGTH = 20 * BLOCK + 5  # so that most blocks are not chosen, and the last is short
SCALE = D**-0.5


class Mean(nn.Module):
    def forward(self, blocks):
        return blocks.mean(-2)


@pytest.fixture
def mechanism():
    options = {"compression": BLOCK, "stride": BLOCK, "block": BLOCK, "top": TOP, "window": WINDOW}
    mechanism = NsaAttention(Dims(heads=H, head_dim=D), causal=True, **options)
    for phi in ("phi_k", "phi_v"):
        mechanism.register_module(phi, Mean())
    return mechanism


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, H, LENGTH, D, generator=generator) for _ in range(3)]


def inputs(tokens, gates):
    """The branches share keys and values, as there."""
    q, k, v = tokens
    return NsaInputs(q, k, v, k, v, k, v, torch.logit(gates).expand(*q.shape[:3], 3))


def theirs(tokens, gates):
    q, k, v = (x.transpose(1, 2) for x in tokens)
    k_cmp, v_cmp = (torch.stack([block.mean(1) for block in x.split(BLOCK, 1)], 1) for x in (k, v))
    compressed, _ = naive_nsa_compression(q, k_cmp, v_cmp, BLOCK, SCALE)
    chosen = naive_nsa_topk(q, k_cmp, TOP, BLOCK, SCALE)
    selected = naive_nsa_selection(q, k, v, chosen, BLOCK, SCALE)
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    seen = (distance >= 0) & (distance <= WINDOW)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * SCALE
    window = torch.einsum("bhts,bshd->bthd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    branches = torch.stack([compressed, selected, window], -1)
    return (branches * gates).sum(-1).transpose(1, 2)


@pytest.mark.parametrize("gates", [(0.9, 0.1, 0.2), (1e-9, 1 - 1e-6, 1e-9), (0.3, 0.4, 0.8)])
def test_it_is_that_of_flash_linear_attention_where_blocks_do_not_overlap(mechanism, tokens, gates):
    gates = torch.tensor(gates)
    assert_close(mechanism(*inputs(tokens, gates)), theirs(tokens, gates), rtol=1e-4, atol=1e-5)


def test_gradients_are_theirs(mechanism, tokens):
    gates, leaves = torch.tensor([0.3, 0.4, 0.8]), [x.requires_grad_() for x in tokens]
    outs = mechanism(*inputs(leaves, gates)), theirs(leaves, gates)
    ours, expected = (torch.autograd.grad(out.square().sum(), leaves) for out in outs)
    assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_stream_chooses_what_they_do(mechanism, tokens):
    gates, state, start = torch.tensor([0.3, 0.4, 0.8]), None, 0
    expected, x = theirs(tokens, gates), inputs(tokens, gates)
    for size in (50, 1, 1, 40, 3, LENGTH - 95):
        chunk = slice(start, start + size)
        out, state = mechanism.step(*(y[:, :, chunk] for y in x), state=state)
        assert_close(out, expected[:, :, chunk], rtol=1e-4, atol=1e-5)
        start += size


def test_each_row_has_blocks_of_its_own_tokens(mechanism, tokens):
    gates = torch.tensor([0.3, 0.4, 0.8])
    valid = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.7
    out = mechanism(*inputs(tokens, gates), valid=valid)
    for row, real in enumerate(valid):
        expected = theirs([x[row : row + 1, :, real] for x in tokens], gates)
        assert_close(out[row : row + 1, :, real], expected, rtol=1e-4, atol=1e-5)
