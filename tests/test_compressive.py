"""The laws of the Compressive Transformer's memories; the contract's are in test_contract.py."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.mechanisms.compressive import CompressiveAttention, CompressiveState
from subquad.mechanisms.transformer_xl import TransformerXL
from subquad.memories.compression import KINDS
from subquad.testing.mechanism.cases import LENGTH, make, random_inputs, stream

TINY = dict(CompressiveAttention.traits.tiny)


def mechanism(*, trained=True, **options) -> Any:
    attention: Any = make(CompressiveAttention, causal=True, **{**TINY, **options})
    if trained:
        generator = torch.Generator().manual_seed(5)
        for weights in attention.f_c.parameters():
            weights.data += torch.randn(weights.shape, generator=generator) / 4
    return attention


def inputs(length=LENGTH, **options):
    return random_inputs(mechanism(), length=length, **options)


def cut(tokens, here):
    return {name: x[:, :, here] for name, x in tokens.items()}


def slots_after(attention, tokens):
    """The compressed keys and values after all `tokens`."""
    _, state = attention.step(**tokens)
    return state.compressed.chunk(2, -1)


# what is compressed


@pytest.mark.parametrize("compression", KINDS)
@pytest.mark.parametrize(("segment", "memory", "compressed"), [(4, 6, 3), (5, 3, 40), (24, 1, 1)])
def test_one_token_to_a_slot_is_transformer_xl_with_a_longer_memory(segment, memory, compressed, compression):
    sizes = {"segment": segment, "memory": memory, "compressed": compressed}
    attention = mechanism(**sizes, rate=1, compression=compression, trained=False)
    longer: Any = make(TransformerXL, causal=True, segment=segment, memory=memory + compressed)
    longer.attention.load_state_dict(attention.attention.state_dict())
    assert_close(attention(**inputs()), longer(**inputs()))


@pytest.mark.parametrize("compression", KINDS)
def test_while_the_memory_holds_everything_it_is_transformer_xl(compression):
    attention = mechanism(segment=6, memory=18, compression=compression)
    longer: Any = make(TransformerXL, causal=True, segment=6, memory=18)
    longer.attention.load_state_dict(attention.attention.state_dict())
    assert_close(attention(**inputs()), longer(**inputs()))


@pytest.mark.parametrize("compression", ["mean", "max", "convolution", "dilated"])
def test_slots_made_of_equal_tokens_are_those_tokens(compression):
    tokens = inputs()
    k, v = (tokens[name][:, :, :6].repeat_interleave(4, 2) for name in ("k", "v"))
    attention = mechanism(segment=8, memory=4, compressed=4, rate=4, compression=compression, trained=False)
    found = slots_after(attention, {"q": tokens["q"], "k": k, "v": v})
    for x, slots in zip((k, v), found, strict=True):
        assert_close(slots, x[:, :, 4:20:4])


@pytest.mark.parametrize(("segment", "memory"), [(4, 6), (2, 10), (12, 2), (8, 8), (6, 4)])
def test_a_slot_is_made_of_the_tokens_of_its_place_whatever_the_sizes(segment, memory):
    tokens = inputs()
    attention = mechanism(segment=segment, memory=memory, compressed=3, compression="mean")
    left = LENGTH // segment * segment - memory
    for name, slots in zip("kv", slots_after(attention, tokens), strict=True):
        assert_close(slots, tokens[name][:, :, left - 6 : left].unflatten(2, (3, 2)).mean(3))


@pytest.mark.parametrize("kind", ["mean", "convolution"])
@pytest.mark.parametrize(
    ("segment", "memory", "compressed", "rate"),
    [(4, 6, 3, 2), (5, 5, 2, 5), (6, 3, 40, 3), (4, 8, 1, 4), (2, 2, 4, 1)],
)
def test_no_token_within_reach_is_lost_and_none_beyond_it_is_seen(segment, memory, compressed, rate, kind):
    sizes = {"segment": segment, "memory": memory, "compressed": compressed, "rate": rate}
    attention, tokens = mechanism(**sizes, compression=kind), inputs(batch=1, requires_grad=True)
    out = attention(**tokens)
    rows = [torch.autograd.grad(out[0, 0, i, 0], tokens["v"], retain_graph=True)[0] for i in range(LENGTH)]
    i = torch.arange(LENGTH)
    first = (i // segment * segment - memory - compressed * rate)[:, None]
    expected = (first <= i) & (i <= i[:, None])
    assert_close(torch.stack([row[0, 0].abs().sum(-1) > 0 for row in rows]), expected)


@pytest.mark.parametrize("compression", KINDS)
@pytest.mark.parametrize(
    ("segment", "memory", "compressed", "rate"), [(3, 6, 2, 3), (8, 4, 5, 2), (2, 4, 1, 1)]
)
def test_many_evictions_are_what_the_queues_of_the_definition_say(
    segment, memory, compressed, rate, compression
):
    sizes = {"segment": segment, "memory": memory, "compressed": compressed, "rate": rate}
    attention, tokens = mechanism(**sizes, compression=compression), inputs(47)
    assert_close(attention(**tokens), attention.definition(**tokens))


# streams


@settings(max_examples=15, deadline=None)
@given(
    segment=st.integers(1, 4),
    memory=st.integers(1, 5),
    compressed=st.integers(1, 5),
    rate=st.integers(1, 3),
    chunks=st.lists(st.integers(0, 11), max_size=6),
    real=st.lists(st.lists(st.booleans(), min_size=40, max_size=40), min_size=2, max_size=2),
)
def test_a_stream_with_padding_is_the_sequence_without_it(segment, memory, compressed, rate, chunks, real):
    sizes = {"segment": rate * segment, "memory": rate * memory, "compressed": compressed, "rate": rate}
    attention, tokens, valid = mechanism(**sizes), inputs(40), torch.tensor(real)
    nan = {name: x.masked_fill(~valid[:, None, :, None], math.nan) for name, x in tokens.items()}
    streamed, _ = stream(attention, nan, [*chunks, 40], valid=valid)
    assert attention.penalty().isfinite()
    for row, keep in enumerate(valid):
        alone = {name: x[row : row + 1, :, keep] for name, x in tokens.items()}
        assert_close(streamed[row : row + 1, :, keep], attention.definition(**alone))


def test_the_state_is_as_large_after_20000_tokens_as_before_the_first():
    attention, sizes, state = mechanism(segment=50, memory=70, compressed=30), [], None
    for length in (0, 1, 9_999, 10_000):
        with torch.no_grad():
            _, state = attention.step(**inputs(length, batch=1), state=state)
        sizes.append([tuple(x.shape) for x in state])
    assert state is not None
    assert state.num_held == 35 + 30
    assert sizes == sizes[:1] * 4


def test_a_row_with_the_initial_state_starts_anew():
    attention, tokens = mechanism(), inputs()
    _, initial = attention.step(**cut(tokens, slice(0)))
    _, state = attention.step(**tokens)
    reset = CompressiveState(
        *(torch.stack([new[0], old[1]]) for new, old in zip(initial, state, strict=True))
    )
    out, _ = attention.step(**tokens, state=reset)
    carried, _ = attention.step(**tokens, state=state)
    assert_close(out[:1], attention(**tokens)[:1])
    assert_close(out[1:], carried[1:])
    assert (carried != out)[0, :, :4].all()


def test_a_detached_state_ends_the_gradient():
    attention, tokens = mechanism(), inputs()
    past, present = cut(tokens, slice(16)), cut(tokens, slice(16, None))
    k = past["k"].requires_grad_()
    _, state = attention.step(**past)
    out, _ = attention.step(**present, state=state)
    assert torch.autograd.grad(out.sum(), k, retain_graph=True)[0].any()
    out, _ = attention.step(**present, state=CompressiveState(*(x.detach() for x in state)))
    assert torch.autograd.grad(out.sum(), k, allow_unused=True) == (None,)


# the attention-reconstruction loss


def reconstruction(attention, tokens):
    """By hand, for one row: every segment's queries, and what leaves the memory when it is full."""
    q, k, v = (tokens[name][0] for name in ("q", "k", "v"))
    A, b, c, errors = attention.f_c.A, attention.f_c.b, attention.rate, []
    for start in range(0, q.shape[1], attention.segment):
        end = start - attention.memory + min(attention.segment, attention.memory)
        old = slice(max(start - attention.memory, 0), max(end, 0))
        if old.stop > old.start:
            now = q[:, start : start + attention.segment]
            slots = [
                torch.einsum("hgrd,hrde->hge", x[:, old].unflatten(1, (-1, c)), A[n]) + b[n][:, None]
                for n, x in enumerate((k, v))
            ]
            before = F.scaled_dot_product_attention(now, k[:, old], v[:, old])
            errors.append((before - F.scaled_dot_product_attention(now, *slots)).square())
    return torch.cat(errors, 1).mean()


@pytest.mark.parametrize(("segment", "memory"), [(4, 6), (4, 4), (6, 2), (2, 8), (4, 2)])
def test_the_penalty_is_what_attention_loses_by_compressing_what_leaves_the_memory(segment, memory):
    attention = mechanism(segment=segment, memory=memory, weight=0.3)
    tokens = inputs(23, batch=1)
    attention(**tokens)
    assert_close(attention.penalty(), 0.3 * reconstruction(attention, tokens))


def test_the_penalty_is_the_mean_over_real_queries():
    attention, tokens = mechanism(), inputs(batch=1)
    valid = torch.arange(LENGTH)[None] % 4 != 2
    attention(
        **{name: x.masked_fill(~valid[:, None, :, None], math.nan) for name, x in tokens.items()}, valid=valid
    )
    expected = reconstruction(attention, {name: x[:, :, valid[0]] for name, x in tokens.items()})
    assert_close(attention.penalty(), expected)
    attention(**{name: x.repeat(3, 1, 1, 1) for name, x in tokens.items()}, valid=valid.repeat(3, 1))
    assert_close(attention.penalty(), expected)


def test_the_penalty_of_a_sequence_is_the_mean_of_its_segments():
    attention, tokens = mechanism(), inputs()
    attention(**tokens)
    whole, state, parts = attention.penalty(), None, []
    for start in range(0, LENGTH, 4):
        _, state = attention.step(**cut(tokens, slice(start, start + 4)), state=state)
        parts.append(attention.penalty())
    assert_close(torch.stack(parts[1:]).mean(), whole)
    assert parts[0] == 0


def test_of_all_weights_only_the_compression_learns_from_the_penalty():
    attention, tokens = mechanism(), inputs(requires_grad=True)
    attention(**tokens)
    wanted = {**tokens, **dict(attention.named_parameters())}
    found = torch.autograd.grad(attention.penalty(), list(wanted.values()), allow_unused=True)
    learning = {name for name, gradient in zip(wanted, found, strict=True) if gradient is not None}
    assert learning == {"f_c.A", "f_c.b"}


def test_learning_from_the_penalty_lowers_it():
    attention, tokens, told = mechanism(compressed=6), inputs(), []
    optimizer = torch.optim.Adam(attention.parameters(), lr=0.02)
    for _ in range(40):
        attention(**tokens)
        told.append(attention.penalty().item())
        optimizer.zero_grad()
        attention.penalty().backward()
        optimizer.step()
    assert told[-1] < told[0] / 2


@pytest.mark.parametrize(
    ("options", "length", "training"),
    [
        ({"rate": 1, "trained": False}, LENGTH, True),  # no loss
        ({"compression": "mean"}, LENGTH, True),  # nothing that learns
        ({"compression": "max"}, LENGTH, True),
        ({"compression": "most-used"}, LENGTH, True),
        ({"weight": 0.0}, LENGTH, True),
        ({}, 4, True),  # nothing to leave
        ({}, LENGTH, False),
    ],
)
def test_there_is_no_penalty_where_nothing_is_lost_or_nothing_learns(options, length, training):
    attention = mechanism(**options).train(training)
    attention(**inputs(length))
    assert attention.penalty().item() == pytest.approx(0, abs=1e-20)


def test_what_makes_keys_and_values_stays_trainable_from_step_to_step():
    attention, x = mechanism(), inputs()["q"]
    weights = [torch.eye(4, dtype=x.dtype).requires_grad_() for _ in "qkv"]
    for _ in range(3):
        q, k, v = (x @ weight for weight in weights)
        loss = attention(q=q, k=k, v=v).square().mean() + attention.penalty()
        gradients = torch.autograd.grad(loss, weights)
        assert all(gradient.any() for gradient in gradients)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.1 * gradient


# as a module


def test_autocast_does_not_narrow_the_memories():
    attention = mechanism().float()
    tokens = {name: x.float() for name, x in inputs().items()}
    expected = attention(**tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(attention(**tokens), expected, rtol=0, atol=0)


def test_a_mechanism_that_was_used_can_be_copied():
    attention = mechanism()
    expected = attention(**inputs())
    assert_close(copy.deepcopy(attention)(**inputs()), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": 0}, "segment must be at least 1, not 0"),
        ({"memory": 0}, "memory must be at least 1, not 0"),
        ({"compressed": -2}, "compressed must be at least 1, not -2"),
        ({"rate": 0}, "rate must be at least 1, not 0"),
        ({"segment": 9}, "segment must be a multiple of rate=2, .* not 9: take 10, or another rate"),
        ({"memory": 1}, "memory must be a multiple of rate=2, .* not 1: take 2, or another rate"),
        (
            {"compression": "median"},
            "compression must be one of mean, max, convolution, dilated, .* not 'median'",
        ),
        ({"weight": -1.0}, "weight must be zero or a positive number, not -1.0"),
        ({"weight": math.inf}, "weight must be zero or a positive number, not inf"),
    ],
)
def test_an_impossible_option_is_refused_with_what_is_possible(options, message):
    with pytest.raises(ValueError, match=message):
        mechanism(**options)
