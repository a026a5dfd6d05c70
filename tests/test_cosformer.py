"""How cosFormer weighs by distance, and where its length ends."""

import math

import pytest
import torch
from torch.testing import assert_close
from weights import weights

from subquad import Dims
from subquad.mechanisms.cosformer import CosFormer

MAX_LEN = 24


def cosformer(*, causal: bool, max_len: int | None = MAX_LEN):
    return CosFormer(Dims(heads=2, head_dim=4, max_len=max_len), causal=causal)


def tokens(length, *, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 2, length, 4, dtype=torch.float64, generator=generator) for _ in range(3)]


def test_weights_fall_as_a_quarter_of_a_cosine():
    ones = torch.ones(1, 2, MAX_LEN, 4, dtype=torch.float64)
    found = weights(cosformer(causal=False), ones, ones, width=4)
    distance = torch.arange(MAX_LEN, dtype=torch.float64)
    expected = (math.pi / 2 * (distance[:, None] - distance) / MAX_LEN).cos()
    assert_close(found, (expected / expected.sum(-1, keepdim=True)).expand_as(found))


def test_the_last_token_of_a_full_sequence_comes_out_as_without_causality():
    inputs = tokens(MAX_LEN)
    assert_close(cosformer(causal=True)(*inputs)[:, :, -1], cosformer(causal=False)(*inputs)[:, :, -1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("together", [1, 100])
def test_blocks_of_tokens_give_what_the_whole_sequence_gives(together, padded, dtype, monkeypatch):
    attention, inputs = cosformer(causal=False), [x.to(dtype) for x in tokens(23)]
    valid = (torch.arange(23) % 4 > 0).expand(2, -1) if padded else None
    exact = [x.double() for x in inputs]
    expected = attention.definition(*exact, valid=valid)
    monkeypatch.setattr("subquad.ops.shared.scan.FEATURE_BLOCK", together)
    with torch.no_grad():
        found = attention(*inputs, valid=valid)
    if valid is not None:
        found = found.masked_fill(~valid[:, None, :, None], 0)
    assert_close(found, expected.to(dtype))


def test_a_query_that_shares_no_feature_with_any_key_gives_zeros_with_finite_gradients():
    q, k, v = tokens(9)
    q, k = (-q.abs()).requires_grad_(), k.requires_grad_()
    for causal in (True, False):
        out = cosformer(causal=causal)(q, k, v)
        assert not out.any()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), [q, k]))


def test_the_causal_form_asks_for_a_greatest_length():
    with pytest.raises(ValueError, match=r"'cosformer' .* set Dims\.max_len"):
        cosformer(causal=True, max_len=None)
    assert cosformer(causal=False, max_len=None)(*tokens(30)).shape == (2, 2, 30, 4)


def test_a_sequence_beyond_the_greatest_length_is_refused_and_padding_does_not_count():
    inputs, mechanism = tokens(MAX_LEN + 2), cosformer(causal=True)
    remedy = rf"built for {MAX_LEN} tokens, not {MAX_LEN + 2}: set a greater Dims\.max_len"
    with pytest.raises(ValueError, match=remedy):
        mechanism(*inputs)
    valid = torch.arange(MAX_LEN + 2) >= torch.tensor([[2], [5]])
    out = mechanism(*inputs, valid=valid)
    assert_close(out[:, :, 5:], mechanism.definition(*inputs, valid=valid)[:, :, 5:])


def test_a_stream_ends_at_the_greatest_length():
    mechanism, state = cosformer(causal=True), None
    for part in zip(*(x.split(8, dim=2) for x in tokens(MAX_LEN)), strict=True):
        _, state = mechanism.step(*part, state=state)
    _, state = mechanism.step(*tokens(1), valid=torch.zeros(2, 1, dtype=torch.bool), state=state)
    with pytest.raises(ValueError, match=f"built for {MAX_LEN} tokens, not {MAX_LEN + 1}"):
        mechanism.step(*tokens(1), valid=torch.tensor([[True], [False]]), state=state)


def test_a_stream_without_rows_goes_on():
    mechanism = cosformer(causal=True)
    _, state = mechanism.step(*tokens(3, batch=0))
    assert mechanism.step(*tokens(3, batch=0), state=state)[0].shape == (0, 2, 3, 4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 5), (2, 1)])
def test_the_smallest_inputs_are_fine(causal, batch, length):
    out = cosformer(causal=causal)(*tokens(length, batch=batch))
    assert out.shape == (batch, 2, length, 4)
