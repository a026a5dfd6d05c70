"""The laws of Transformer-XL's memory; the contract's are in test_contract.py."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.mechanisms.transformer_xl import TransformerXL, TransformerXLState
from subquad.nn.state import detach
from subquad.testing.mechanism.cases import LENGTH, gradients, make, random_inputs, stream


def mechanism(**options) -> Any:
    return make(TransformerXL, causal=True, **options)


def inputs(length=LENGTH, **options):
    return random_inputs(mechanism(segment=5, memory=7), length=length, **options)


def cut(tokens, here):
    return {name: x[:, :, here] for name, x in tokens.items()}


def visible(attention, length=LENGTH):
    """Which token reaches which output, by the gradients of values."""
    tokens = inputs(length, batch=1, requires_grad=True)
    out = attention(**tokens)
    rows = [torch.autograd.grad(out[0, 0, i, 0], tokens["v"], retain_graph=True)[0] for i in range(length)]
    return torch.stack([row[0, 0, :, 0] != 0 for row in rows])


def test_one_segment_is_the_papers_four_terms_for_every_pair():
    attention, tokens = mechanism(segment=LENGTH, memory=0), inputs(batch=1)
    weights = attention.attention
    expected = torch.zeros_like(tokens["q"])
    for h in range(2):
        q, k, v = (tokens[name][0, h] for name in ("q", "k", "v"))
        for i in range(LENGTH):
            scores = torch.zeros(i + 1, dtype=torch.float64)
            for j in range(i + 1):
                angles = [(i - j) * 10_000 ** (-2 * m / 4) for m in range(2)]
                waves = [wave(a) for wave in (math.sin, math.cos) for a in angles]
                r = torch.tensor(waves, dtype=torch.float64)
                content, position = q[i] + weights.u[h], q[i] + weights.v[h]
                scores[j] = (content @ k[j] + position @ (r @ weights.W_R[h])) / 2
            expected[0, h, i] = scores.softmax(0) @ v[: i + 1]
    assert_close(attention(**tokens), expected)


@pytest.mark.parametrize(("segment", "memory"), [(12, 12), (13, 13), (23, 40), (5, 20), (1, 23)])
def test_a_memory_that_holds_all_that_came_before_makes_one_long_causal_pass(segment, memory):
    tokens = inputs()
    whole = mechanism(segment=LENGTH, memory=0)(**tokens)
    assert_close(mechanism(segment=segment, memory=memory)(**tokens), whole)


@pytest.mark.parametrize(("segment", "memory"), [(12, 12), (5, 20), (99, 3)])
def test_without_positions_and_biases_it_is_softmax_attention_as_far_as_the_memory_goes(segment, memory):
    attention, tokens = mechanism(segment=segment, memory=memory), inputs()
    for parameter in attention.parameters():
        torch.nn.init.zeros_(parameter)
    softmax = F.scaled_dot_product_attention(tokens["q"], tokens["k"], tokens["v"], is_causal=True)
    assert_close(attention(**tokens), softmax)


@pytest.mark.parametrize(("segment", "memory"), [(5, 7), (5, 5), (5, 3), (4, 12), (6, 1), (6, 0), (1, 4)])
def test_a_token_sees_its_segment_up_to_itself_and_the_memory_before_it(segment, memory):
    i = torch.arange(LENGTH)
    first = (i // segment * segment - memory)[:, None]
    assert_close(visible(mechanism(segment=segment, memory=memory)), (first <= i) & (i <= i[:, None]))


@pytest.mark.parametrize("segment", [1, 4, 5, LENGTH])
def test_with_same_length_every_token_sees_as_many(segment):
    i = torch.arange(LENGTH)
    distance = i[:, None] - i
    attention = mechanism(segment=segment, memory=6, same_length=True)
    assert_close(visible(attention), (distance >= 0) & (distance < 6))


@pytest.mark.parametrize("segment", [1, 4, 5, LENGTH])
def test_with_same_length_segments_make_no_difference(segment):
    one, other = (mechanism(segment=size, memory=6, same_length=True) for size in (7, segment))
    tokens, valid = inputs(), torch.arange(LENGTH).expand(2, -1) % 5 != 2
    assert_close(one(**tokens, valid=valid), other(**tokens, valid=valid))
    assert_close(one.definition(**tokens, valid=valid), other(**tokens, valid=valid))


def test_positions_are_distances_so_that_earlier_tokens_do_not_shift_later_ones():
    attention, tokens = mechanism(segment=6, memory=6), inputs()
    later = attention(**cut(tokens, slice(12, None)))
    assert_close(attention(**tokens)[:, :, 18:], later[:, :, 6:])


@settings(max_examples=15, deadline=None)
@given(
    segment=st.integers(1, 9),
    memory=st.integers(0, 20),
    chunks=st.lists(st.integers(0, 11), max_size=6),
    real=st.lists(st.lists(st.booleans(), min_size=40, max_size=40), min_size=2, max_size=2),
)
def test_a_stream_with_padding_is_the_sequence_without_it(segment, memory, chunks, real):
    attention, tokens, valid = mechanism(segment=segment, memory=memory), inputs(40), torch.tensor(real)
    nan = {name: x.masked_fill(~valid[:, None, :, None], math.nan) for name, x in tokens.items()}
    streamed, _ = stream(attention, nan, [*chunks, 40], valid=valid)
    for row, keep in enumerate(valid):
        alone = {name: x[row : row + 1, :, keep] for name, x in tokens.items()}
        assert_close(streamed[row : row + 1, :, keep], attention.definition(**alone))


def test_the_state_is_as_large_after_20000_tokens_as_before_the_first():
    attention, sizes, state = mechanism(segment=50, memory=70), [], None
    for length in (0, 1, 9_999, 10_000):
        _, state = attention.step(**inputs(length, batch=1), state=state)
        sizes.append([tuple(x.shape) for x in state])
    assert state is not None
    assert state.num_held == 70
    assert sizes == sizes[:1] * 4


def test_a_row_with_the_initial_state_starts_anew():
    attention, tokens = mechanism(segment=5, memory=7), inputs()
    _, initial = attention.step(**cut(tokens, slice(0)))
    _, state = attention.step(**tokens)
    reset = TransformerXLState(
        *(torch.stack([new[0], old[1]]) for new, old in zip(initial, state, strict=True))
    )
    out, _ = attention.step(**tokens, state=reset)
    carried, _ = attention.step(**tokens, state=state)
    assert_close(out[:1], attention(**tokens)[:1])
    assert_close(out[1:], carried[1:])
    assert (carried != out)[0, :, :5].all()


def test_a_detached_state_ends_the_gradient():
    attention, tokens = mechanism(segment=5, memory=7), inputs()
    past, present = cut(tokens, slice(12)), cut(tokens, slice(12, None))
    k = past["k"].requires_grad_()
    _, state = attention.step(**past)
    out, _ = attention.step(**present, state=state)
    assert torch.autograd.grad(out.sum(), k, retain_graph=True)[0].any()
    out, _ = attention.step(**present, state=TransformerXLState(*(x.detach() for x in state)))
    assert torch.autograd.grad(out.sum(), k, allow_unused=True) == (None,)


@pytest.mark.parametrize("same_length", [False, True])
def test_detached_gradients_are_those_of_calls_by_segment_with_a_detached_state(same_length):
    attention = mechanism(segment=5, memory=7, same_length=same_length, detach=True)
    tokens = inputs(requires_grad=True)
    targets = {**tokens, **dict(attention.named_parameters())}
    state, outs = None, []
    for start in range(0, LENGTH, 5):
        out, state = attention.step(**cut(tokens, slice(start, start + 5)), state=state)
        state = detach(state)
        outs.append(out)
    whole, parts = attention(**tokens), torch.cat(outs, 2)
    assert_close(whole, parts)
    assert_close(gradients(whole, targets), gradients(parts, targets))


def test_autocast_does_not_narrow_the_memory():
    attention = mechanism(segment=5, memory=7).float()
    tokens = {name: x.float() for name, x in inputs().items()}
    expected = attention(**tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(attention(**tokens), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": 0}, "segment must be at least 1, not 0"),
        ({"memory": -1}, "memory must be at least 0, not -1"),
        ({"memory": 0, "same_length": True}, "memory must be at least 1, not 0"),
    ],
)
def test_an_impossible_option_is_refused_with_what_is_possible(options, message):
    with pytest.raises(ValueError, match=message):
        mechanism(**options)
