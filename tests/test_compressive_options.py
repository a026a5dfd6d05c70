"""The Compressive Transformer's other compressions and losses, and where gradients stop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from variants import variant

from subquad.mechanisms.compressive import CompressiveAttention
from subquad.memories.compression import KINDS
from subquad.nn.state import detach
from subquad.testing import contract
from subquad.testing.mechanism import cost
from subquad.testing.mechanism.cases import LENGTH, Tensors, gradients, make, random_inputs
from subquad.testing.mechanism.meaning import check_gradients_reach_everything

TINY = dict(CompressiveAttention.traits.tiny)
VARIANTS = {
    "dilated": variant(CompressiveAttention, compression="dilated"),
    "most used": variant(CompressiveAttention, compression="most-used"),
    "auto-encoding": variant(CompressiveAttention, loss="auto-encoding"),
    "detached": variant(CompressiveAttention, detach=True),
}
LEARNING_FROM_LOSSES = {"auto-encoding", "detached"}  # so that nothing else reaches all weights
CASES = [
    (name, check)
    for name, cls in VARIANTS.items()
    for check in contract(cls)
    if check.__module__ != cost.__name__
    and not hasattr(check, "slow")
    and not (check is check_gradients_reach_everything and name in LEARNING_FROM_LOSSES)
]


def label(value):
    return value if isinstance(value, str) else value.__name__.removeprefix("check_")


@pytest.mark.parametrize(("name", "check"), CASES, ids=label)
def test_every_option_keeps_the_contract(name, check):
    check(VARIANTS[name])


COMPILED = """
import sys
from test_compressive_options import VARIANTS, contract

cls = VARIANTS[sys.argv[1]]
for check in contract(cls):
    if hasattr(check, "slow"):
        check(cls)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dilated", "most used"])
def test_every_compression_is_compiled_and_exported(name):
    """Where nothing checks types, which the compiler cannot follow: the graphs and their gradients."""
    run = subprocess.run(
        [sys.executable, "-c", COMPILED, name],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        env={**os.environ, "CXX": "none"},
    )
    assert run.returncode == 0, run.stderr[-2000:]


def mechanism(**options) -> CompressiveAttention:
    attention = make(CompressiveAttention, causal=True, **{**TINY, **options})
    assert isinstance(attention, CompressiveAttention)
    generator = torch.Generator().manual_seed(5)
    for weights in [*attention.f_c.parameters(), *attention._decoder_weights()]:
        weights.data += torch.randn(weights.shape, generator=generator) / 4
    return attention


def inputs(attention, *, length=LENGTH, **options):
    return random_inputs(attention, length=length, **options)


def cut(tokens, start, stop):
    return {name: x[:, :, start:stop] for name, x in tokens.items()}


# what is compressed


@pytest.mark.parametrize("bright", [{8, 13}, {9, 10}, {14, 15}])
def test_the_tokens_that_are_kept_are_those_that_all_look_at(bright):
    attention = mechanism(segment=8, memory=8, compressed=2, rate=4, compression="most-used")
    tokens = inputs(attention, batch=1, length=24)
    tokens["q"] = torch.ones_like(tokens["q"])
    tokens["k"] = tokens["k"] / 10
    for place in bright:
        tokens["k"][:, :, place] += 4
    _, state = attention.step(**tokens)
    k, v = state.compressed.chunk(2, -1)
    assert_close(k, tokens["k"][:, :, sorted(bright)])
    assert_close(v, tokens["v"][:, :, sorted(bright)])


def test_what_one_head_looks_at_is_kept_for_all():
    attention = mechanism(segment=4, memory=4, compressed=1, rate=4, compression="most-used")
    tokens = inputs(attention, batch=1, length=8)
    tokens["q"] = torch.ones_like(tokens["q"])
    tokens["k"] = tokens["k"] / 10
    tokens["k"][:, 1, 2] += 9
    _, state = attention.step(**tokens)
    assert_close(state.compressed.chunk(2, -1)[0][:, :, 0], tokens["k"][:, :, 2])


def test_a_tokens_use_does_not_depend_on_how_many_could_look_at_it():
    # nobody looks anywhere in particular: of tokens that all get the same, later ones had fewer to look at
    # them, and among fewer; so the last have the largest share of each look
    attention = mechanism(segment=4, memory=4, compressed=2, rate=2, compression="most-used")
    for weights in attention.attention.parameters():
        torch.nn.init.zeros_(weights)
    tokens = inputs(attention, batch=1, length=8)
    tokens["q"] = torch.zeros_like(tokens["q"])
    _, state = attention.step(**tokens)
    looks = [[1 / (i + 1) for i in range(j, 8)] for j in range(4)]
    means = torch.tensor([sum(x) / len(x) for x in looks])
    kept = means.argsort(descending=True)[:2].sort().values
    assert_close(state.compressed.chunk(2, -1)[0], tokens["k"][:, :, kept])


@pytest.mark.parametrize(("rate", "reach"), [(1, 1), (2, 1), (4, 3), (8, 7)])
def test_a_dilated_slot_hears_of_neighbours_that_leave_with_its_tokens_and_of_no_others(rate, reach):
    attention = mechanism(segment=16, memory=16, compressed=48, rate=rate, compression="dilated")
    tokens = inputs(attention, batch=1, length=64, requires_grad=True)
    _, state = attention.step(**tokens)
    slots = state.compressed[0, :, -32 // rate :]  # of the first two segments but the newest tokens
    i = torch.arange(64)
    for slot in range(32 // rate):
        (found,) = torch.autograd.grad(slots[:, slot, :4].sum(), tokens["k"], retain_graph=True)
        first, block = slot * rate + 16, (slot * rate + 16) // 16 * 16
        seen = (i >= max(first - reach, block)) & (i < min(first + rate + reach, block + 16))
        assert_close(found[0].abs().sum((0, 2)) > 0, seen)


# losses


def encoding(attention, tokens):
    """The auto-encoding loss by hand, for one row: what leaves when a segment is full."""
    l, m, c, f_c, g, errors = *(attention.segment, attention.memory, attention.rate), attention.f_c, None, []
    g, length, left = attention.decoder, tokens["k"].shape[2], 0
    for end in range(l, length + 1, l):
        for start in range(left, max(left, end - m), c):
            for n, name in enumerate("kv"):
                x = tokens[name][0, :, start : start + c]
                slot = torch.einsum("hrd,hrde->he", x, f_c.A[n]) + f_c.b[n]
                again = torch.einsum("hd,hde->he", slot, g.D[n]) + g.e[n]
                errors.append((x - again.unflatten(1, (c, -1))).square().mean())
        left = max(left, end - m)
    return torch.stack(errors).mean()


@pytest.mark.parametrize(("segment", "memory"), [(4, 6), (4, 4), (6, 2), (2, 8), (4, 2)])
def test_the_auto_encoding_penalty_is_how_far_the_decoder_is_from_what_leaves(segment, memory):
    attention = mechanism(segment=segment, memory=memory, weight=0.3, loss="auto-encoding")
    tokens = inputs(attention, length=23, batch=1)
    attention(**tokens)
    assert_close(attention.penalty(), 0.3 * encoding(attention, tokens))


def test_the_auto_encoding_penalty_counts_real_tokens_and_each_once():
    attention = mechanism(loss="auto-encoding")
    tokens = inputs(attention, batch=1)
    valid = torch.arange(LENGTH)[None] % 4 != 2
    attention(
        **{name: x.masked_fill(~valid[:, None, :, None], torch.nan) for name, x in tokens.items()},
        valid=valid,
    )
    expected = encoding(attention, {name: x[:, :, valid[0]] for name, x in tokens.items()})
    assert_close(attention.penalty(), expected)
    state, told = None, []
    for place in torch.arange(LENGTH)[valid[0]].split(2):
        _, state = attention.step(**{name: x[:, :, place] for name, x in tokens.items()}, state=state)
        told.append(attention.penalty())
    told = torch.stack(told)
    assert_close(told[told > 0].double().mean(), expected, rtol=0.2, atol=0)
    assert (told > 0).sum() == 3  # segments of 4 tokens that are full, of 18, once the memory is


def test_of_all_weights_only_compressor_and_decoder_learn_from_auto_encoding():
    attention = mechanism(loss="auto-encoding", compression="dilated")
    tokens = inputs(attention, requires_grad=True)
    attention(**tokens)
    wanted = {**tokens, **dict(attention.named_parameters())}
    found = torch.autograd.grad(attention.penalty(), list(wanted.values()), allow_unused=True)
    learning = {name for name, gradient in zip(wanted, found, strict=True) if gradient is not None}
    assert learning == {"f_c.A", "f_c.b", "f_c.B", "f_c.bias", "decoder.D", "decoder.e"}


@pytest.mark.parametrize("compression", ["convolution", "dilated"])
@pytest.mark.parametrize("loss", ["attention", "auto-encoding"])
def test_learning_from_either_loss_lowers_it(compression, loss):
    attention = mechanism(compressed=6, compression=compression, loss=loss)
    tokens, told = inputs(attention), []
    optimizer = torch.optim.Adam(attention.parameters(), lr=0.02)
    for _ in range(60):
        attention(**tokens)
        told.append(attention.penalty().item())
        optimizer.zero_grad()
        attention.penalty().backward()
        optimizer.step()
    assert told[-1] < 0.6 * told[0]


# where gradients stop


@pytest.mark.parametrize("compression", KINDS)
def test_detached_gradients_are_those_of_calls_by_segment_with_a_detached_state(compression):
    attention = mechanism(detach=True, compression=compression)
    tokens = inputs(attention, requires_grad=True)
    targets = {**tokens, **dict(attention.named_parameters())}
    state, outs = None, []
    for start in range(0, LENGTH, 4):
        out, state = attention.step(**cut(tokens, start, start + 4), state=state)
        state = detach(state)
        outs.append(out)
    whole, parts = attention(**tokens), torch.cat(outs, 2)
    assert_close(whole, parts)
    assert_close(gradients(whole, targets), gradients(parts, targets))


def test_a_detached_compressor_learns_from_its_loss_and_not_from_the_task():
    attention = mechanism(detach=True)
    weights: Tensors = dict(attention.f_c.named_parameters())
    out = attention(**inputs(attention))
    assert not any(x.any() for x in gradients(out, weights).values())
    assert all(x.any() for x in gradients(attention.penalty(), weights).values())


def test_a_decoder_and_a_loss_that_is_unknown_are_refused_with_what_is_possible():
    with pytest.raises(ValueError, match="loss must be one of attention, auto-encoding, not 'l2'"):
        mechanism(loss="l2")
