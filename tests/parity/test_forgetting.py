"""Forgetting attention beside flash-linear-attention's plain function, and beyond one block of queries."""

import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.forgetting import QUERY_BLOCK, ForgettingAttention

H, D = 2, 8
DIMS = Dims(heads=H, head_dim=D)


def tokens(length, *, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    widths = (D, D, D, 1)
    return [
        torch.randn(2, H, length, width, dtype=torch.float64, generator=generator).to(dtype)
        for width in widths
    ]


@pytest.mark.parametrize("length", [150, QUERY_BLOCK + 77])
def test_it_is_flas(length):
    with warnings.catch_warnings():  # it warns that there is no GPU
        warnings.simplefilter("ignore")
        pytest.importorskip("fla.ops.forgetting_attn.naive", exc_type=ImportError)
        from fla.ops.forgetting_attn.naive import naive_forgetting_attn
    q, k, v, forget = tokens(length, dtype=torch.float32)
    q_, k_, v_ = (x.transpose(1, 2) for x in (q, k, v))
    theirs = naive_forgetting_attn(q_, k_, v_, F.logsigmoid(forget[..., 0]).mT)
    ours = ForgettingAttention(DIMS, causal=True)(q, k, v, forget)
    assert_close(ours, theirs.transpose(1, 2), rtol=1e-3, atol=1e-4)  # theirs sums in float32


def test_gradients_cross_the_ends_of_blocks():
    inputs = [x.requires_grad_() for x in tokens(2 * QUERY_BLOCK + 9)]
    q, k, v, forget = inputs
    c = F.logsigmoid(forget).cumsum(2)
    future = torch.ones(c.shape[2], c.shape[2], dtype=torch.bool).triu(1)
    scores = (q @ k.mT / D**0.5 + c - c.mT).masked_fill(future, -torch.inf)
    expected = torch.autograd.grad((scores.softmax(-1) @ v).square().sum(), inputs)
    out = ForgettingAttention(DIMS, causal=True)(*inputs)
    assert_close(torch.autograd.grad(out.square().sum(), inputs), expected)


@pytest.mark.parametrize("streamed", [False, True])
@torch.no_grad()
def test_a_long_past_costs_no_precision(streamed):
    """After 6,000 tokens c is near -5,000, where float32 tells no differences below 5e-4 apart."""
    mechanism, state = ForgettingAttention(DIMS, causal=True), None
    inputs = tokens(6000)
    exact = mechanism(*inputs)[:, :, -300:]
    narrow = [x.float() for x in inputs]
    out = mechanism(*narrow)[:, :, -300:]
    if streamed:
        for part in zip(*(x.split(300, 2) for x in narrow), strict=True):
            out, state = mechanism.step(*part, state=state)
    assert_close(out, exact.float(), rtol=1e-4, atol=2e-5)
