"""The laws of the infinity-former's two memories; the contract's are in test_contract.py."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.mechanism import Dims
from subquad.mechanisms import unbounded
from subquad.mechanisms.infinity import InfinityAttention
from subquad.mechanisms.unbounded import UnboundedState
from subquad.memories.continuous import accumulated, ridge_fit
from subquad.memories.reads import BINS, Gaussian, Sticky, divergence, middles
from subquad.ops.relative_attention.positions import sinusoid, turn

DIMS = Dims(heads=2, head_dim=4)
TINY = dict(InfinityAttention.traits.tiny)
LENGTH = 24


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mechanism(**options):
    torch.manual_seed(0)
    return InfinityAttention(DIMS, causal=True, **{**TINY, **options}).double()


def sequence(length=LENGTH, batch=2, seed=1):
    names = ("q", "k", "v", "long_k", "long_v")
    return {name: normal(batch, 2, length, 4, seed=10 * seed + n) for n, name in enumerate(names)}


def cut(inputs, here):
    return {name: x[:, :, here] for name, x in inputs.items()}


def memory(**options):
    return mechanism(**options).long_term


def evaluate(long, signal, points):
    """The signal at points of each row."""
    return signal @ long.bumps_at(points).mT[:, None]


def fit(long, X, *, first=True):
    return long.fit(X, first=torch.full((len(X),), first))


# the continuous memory


def test_a_read_of_no_width_is_the_signal_at_its_mean():
    long, signal, mean = memory(), normal(3, 2, 4, 8), normal(3, 2, 7).sigmoid()
    read = long.read(Gaussian(mean, torch.full_like(mean, 1e-18)), signal)
    by_head = [evaluate(long, signal[:, h : h + 1], mean[:, h]).mT for h in range(2)]
    assert_close(read, torch.cat(by_head, 1))


@pytest.mark.parametrize(("vectors", "bumps"), [(5, 9), (9, 5)])
def test_a_fit_is_the_least_squares_solution_with_a_ridge(vectors, bumps):
    F_T, X = normal(vectors, bumps), normal(vectors, 3, seed=1)
    ridge = 0.3 * torch.eye(bumps, dtype=torch.float64)
    stacked, zeros = torch.cat([F_T, ridge.sqrt()]), torch.zeros(bumps, 3, dtype=torch.float64)
    least = torch.linalg.lstsq(stacked, torch.cat([X, zeros])).solution
    assert_close(ridge_fit(F_T, 0.3).mT @ X, least)


def test_with_enough_bumps_and_hardly_a_ridge_the_signal_goes_through_every_vector():
    long, X = memory(basis=64, narrow=0.03, wide=0.05, ridge=1e-10), normal(3, 2, 5, 4)
    t = middles(5, like=X).expand(3, -1)
    assert_close(evaluate(long, fit(long, X), t).mT, X, rtol=0, atol=1e-6)


def test_a_later_write_keeps_the_past_contracted_and_puts_the_new_behind_it():
    long = memory(basis=128, narrow=0.01, wide=0.02, ridge=1e-9, tau=0.6)
    old, X, points = (
        fit(long, normal(3, 2, 5, 4)),
        normal(3, 2, 5, 4, seed=1),
        normal(3, 12).sigmoid().sort().values,
    )
    new = long.refit(old, points, fit(long, X, first=False))
    past, present = middles(12, like=X) * 0.6, 0.6 + 0.4 * middles(5, like=X)
    assert_close(evaluate(long, new, past.expand(3, -1)), evaluate(long, old, points), rtol=0, atol=1e-5)
    assert_close(evaluate(long, new, present.expand(3, -1)).mT, X, rtol=0, atol=1e-5)


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 8, 13])
def test_writes_at_the_same_points_are_the_same_side_by_side_and_one_after_the_other(writes):
    first, added, A = normal(2, 5, 8), normal(2, writes, 5, 8, seed=1), normal(8, 8, seed=2)
    one_by_one = [first]
    for n in range(writes):
        one_by_one.append(one_by_one[-1] @ A + added[:, n])
    assert_close(accumulated(first, added, A), torch.stack(one_by_one, 1))


def points_of(mass, count):
    below = F.pad(mass.cumsum(1), (1, 0))
    return Sticky(count, like=normal(len(mass), 1, 1, 1)).points(below)


@pytest.mark.parametrize("mass", [0, 7])
@pytest.mark.parametrize("count", [12, 512])
def test_a_flat_histogram_gives_points_spread_evenly(mass, count):
    points = points_of(torch.full((2, BINS), mass), count)
    assert_close(points, middles(count, like=normal(1)).expand(2, -1))


def test_a_part_of_the_past_gets_points_in_proportion_to_its_reads():
    mass = (1e9 * normal(3, BINS).exp()).long()
    mass[:, 5] = 0
    points = points_of(mass, 1000)
    counts = torch.stack([torch.histc(row, BINS, 0, 1) for row in points])
    assert_close(counts / 1000, mass / mass.sum(1, keepdim=True).double(), rtol=0, atol=0.002)


def test_operators_lose_nothing_by_a_detour_through_half_precision():
    detour, exact = memory().half(), memory()
    assert detour.G_past.dtype == torch.float32
    assert_close(detour.double().G_past, exact.G_past, rtol=0, atol=0)


# the penalty


def test_the_divergence_is_that_of_two_gaussians_with_one_mean():
    variance, real = normal(2, 2, 6).exp() / 50, torch.arange(12).reshape(2, 6) < 9
    reads = Normal(torch.tensor(0.3, dtype=torch.float64), variance.sqrt())
    expected = kl_divergence(reads, Normal(0.3, 0.05)).masked_fill(~real[:, None], 0).sum()
    assert_close(divergence(variance, deviation=0.05, real=real), expected)


def test_the_penalty_has_no_pull_on_where_is_read_but_one_on_how_widely():
    attention = mechanism()
    attention(**sequence())
    attention.penalty().backward()
    pulled = {
        name for name, p in attention.long_term.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert pulled == {"w_sigma", "b_sigma"}


def test_the_penalty_is_the_mean_over_real_reads():
    attention, inputs = mechanism(deviation=0.3, kl_weight=0.1), sequence(batch=1)
    valid = torch.arange(LENGTH)[None] % 4 != 2
    attention(**{name: x[:, :, valid[0]] for name, x in inputs.items()})
    alone = attention.penalty()
    attention(**inputs, valid=valid)
    assert_close(attention.penalty(), alone)
    attention(**{name: x.repeat(3, 1, 1, 1) for name, x in inputs.items()}, valid=valid.repeat(3, 1))
    assert_close(attention.penalty(), alone)


def test_reads_of_one_width_have_the_penalty_of_that_width():
    attention = mechanism(deviation=0.3, kl_weight=0.1)
    torch.nn.init.zeros_(attention.long_term.w_sigma)
    assert attention.long_term.b_sigma is not None
    torch.nn.init.zeros_(attention.long_term.b_sigma)  # softplus(0) = log 2
    attention(**sequence())
    ratio = math.log(2) / 0.3**2
    assert attention.penalty().item() == pytest.approx(0.1 * (ratio - math.log(ratio) - 1) / 2)


def test_there_is_no_penalty_where_nothing_was_read():
    attention = mechanism()
    attention(**sequence())
    attention(**sequence(10))
    assert attention.penalty() == 0


# the short-term memory


def test_turning_a_vector_by_i_moves_its_product_from_distance_to_position():
    a, i, j = normal(6), torch.tensor(7), torch.tensor(-4)
    expected = a @ sinusoid(i - j, 6, like=a)
    assert_close(turn(a, sinusoid(i, 6, like=a)) @ sinusoid(j, 6, like=a), expected)


@pytest.mark.parametrize("segment", [12, 13, 23])
def test_two_segments_are_one_long_causal_pass(segment):
    halves, whole = mechanism(segment=segment), mechanism(segment=LENGTH)
    halves.short_term.load_state_dict(whole.short_term.state_dict())
    inputs = sequence()
    assert_close(halves(**inputs), whole(**inputs))


@pytest.mark.parametrize("segment", [12, 24, 99])
def test_without_positions_and_biases_a_short_sequence_gets_softmax_attention(segment):
    attention, inputs = mechanism(segment=segment), sequence()
    for parameter in attention.short_term.parameters():
        torch.nn.init.zeros_(parameter)
    softmax = F.scaled_dot_product_attention(inputs["q"], inputs["k"], inputs["v"], is_causal=True)
    assert_close(attention(**inputs), softmax)


def test_what_is_older_than_two_segments_reaches_a_token_through_the_long_term_memory_alone():
    attention, inputs = mechanism(), sequence()
    torch.nn.init.zeros_(attention.W_o)
    changed = {name: x.clone() for name, x in inputs.items()}
    for x in changed.values():
        x[:, :, :10] += 1
    assert_close(attention(**changed)[:, :, 15:], attention(**inputs)[:, :, 15:])
    torch.nn.init.ones_(attention.W_o)
    assert (attention(**changed) != attention(**inputs))[:, :, 15:].all()


# both


@pytest.mark.parametrize("sticky", [True, False])
@pytest.mark.parametrize("segment", [4, 7])
@pytest.mark.parametrize("at_once", [1, 1000, 2**20])  # one segment, a few, all
def test_many_writes_are_what_the_definition_says(segment, sticky, at_once, monkeypatch):
    monkeypatch.setattr(unbounded, "IN_CACHE", at_once)
    attention, inputs = mechanism(segment=segment, sticky=sticky), sequence(61)
    assert_close(attention(**inputs), attention.definition(**inputs))


@pytest.mark.parametrize("sticky", [True, False])
def test_how_many_segments_are_taken_at_once_changes_neither_gradients_nor_states(sticky, monkeypatch):
    attention, inputs = mechanism(sticky=sticky), sequence(53)
    valid = normal(2, 53, seed=5) < 0.8
    valid[0, :30] = False
    for x in inputs.values():
        x.requires_grad_()

    def stream():
        out, state = attention.step(**cut(inputs, slice(20)), valid=valid[:, :20])
        more, state = attention.step(**cut(inputs, slice(20, None)), valid=valid[:, 20:], state=state)
        gradients = torch.autograd.grad(more.sum() + state.signal.sum(), list(inputs.values()))
        return [out, more, *state, attention.penalty(), *gradients]

    results = []
    for at_once in (1, 2000, 2**20):
        monkeypatch.setattr(unbounded, "IN_CACHE", at_once)
        results.append(stream())
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert_close(x, y)


def test_sticky_memories_keep_another_past():
    inputs = sequence()
    assert (mechanism(sticky=True)(**inputs) != mechanism(sticky=False)(**inputs))[:, :, 15:20].all()


@settings(max_examples=15, deadline=None)
@given(
    chunks=st.lists(st.integers(0, 11), min_size=1, max_size=8),
    real=st.lists(st.lists(st.booleans(), min_size=40, max_size=40), min_size=2, max_size=2),
    left=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_a_stream_with_padding_is_the_sequence_without_it(chunks, real, left):
    attention, inputs, valid = mechanism(), sequence(40), torch.tensor(real)
    for row, count in enumerate(left):
        valid[row, :count] = False
    nan = {name: x.masked_fill(~valid[:, None, :, None], math.nan) for name, x in inputs.items()}
    state, outputs, start = None, [], 0
    for size in [*chunks, 40]:
        here = slice(start, start + size)
        out, state = attention.step(**cut(nan, here), valid=valid[:, here], state=state)
        outputs.append(out)
        start += size
    streamed = torch.cat(outputs, 2)
    for row, keep in enumerate(valid):
        alone = attention(**{name: x[row : row + 1, :, keep] for name, x in inputs.items()})
        assert_close(streamed[row : row + 1, :, keep], alone)
        assert not streamed[row, :, ~keep].any()


def test_a_tiny_change_stays_tiny_from_write_to_write():
    # without rounding to GRAIN it grows tenfold and more with every write, float32 with its own errors too
    attention = mechanism(segment=32, basis=128, narrow=0.005, wide=0.01, samples=128)
    inputs = sequence(640, batch=1)
    changed = {name: x + 1e-9 for name, x in inputs.items()}
    with torch.no_grad():
        assert_close(attention(**changed), attention(**inputs), rtol=0, atol=1e-6)


def test_the_state_is_as_large_after_64000_events_as_before_the_first_and_stays_in_bounds():
    attention = mechanism(segment=250).float()
    sizes, sums = [], []
    state = None
    for length in (0, 1000, *[7000] * 9):
        inputs = {name: x.float() for name, x in sequence(length, batch=1, seed=length).items()}
        with torch.no_grad():
            _, state = attention.step(**inputs, state=state)
        sizes.append([tuple(x.shape) for x in state])
        sums.append(state.signal.norm())
    assert state is not None
    assert state.full_segments == 256
    assert sizes == sizes[:1] * 11
    assert max(sums[1:]) < 2 * sums[1]


def test_a_row_with_the_initial_state_starts_anew():
    attention, inputs = mechanism(), sequence()
    _, initial = attention.step(**cut(inputs, slice(0)), state=None)
    _, state = attention.step(**inputs, state=None)
    reset = UnboundedState(*(torch.stack([new[0], old[1]]) for new, old in zip(initial, state, strict=True)))
    out, _ = attention.step(**inputs, state=reset)
    assert_close(out[:1], attention(**inputs)[:1])
    carried, _ = attention.step(**inputs, state=state)
    assert_close(out[1:], carried[1:])
    assert (carried != out)[0].all()


def test_a_detached_state_ends_the_gradient():
    attention, inputs = mechanism(), sequence()
    past, present = (cut(inputs, here) for here in (slice(12), slice(12, None)))
    for x in past.values():
        x.requires_grad_()
    _, state = attention.step(**past, state=None)
    out, _ = attention.step(**present, state=state)
    reached = torch.autograd.grad(out.sum(), list(past.values()), allow_unused=True, retain_graph=True)
    assert [gradient is not None for gradient in reached] == [False, True, True, True, True]
    cut_off, _ = attention.step(**present, state=UnboundedState(*(x.detach() for x in state)))
    assert not any(torch.autograd.grad(cut_off.sum(), list(past.values()), allow_unused=True))


def test_autocast_does_not_narrow_the_memory():
    attention, inputs = mechanism().float(), {name: x.float() for name, x in sequence().items()}
    expected = attention(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(attention(**inputs), expected, rtol=0, atol=0)


def test_a_mechanism_that_was_used_can_be_copied():
    attention = mechanism()
    expected = attention(**sequence())
    assert_close(copy.deepcopy(attention)(**sequence()), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": 0}, "segment must be at least 1, not 0"),
        ({"samples": -3}, "samples must be at least 1, not -3"),
        ({"basis": 7}, "basis must be even and at least 2, not 7"),
        ({"narrow": 0.0}, "narrow must be a positive number, not 0.0"),
        ({"wide": math.inf}, "wide must be a positive number, not inf"),
        ({"ridge": -0.5}, "ridge must be a positive number, not -0.5"),
        ({"deviation": math.nan}, "deviation must be a positive number, not nan"),
        ({"tau": 1.0}, "tau must be between 0 and 1, both excluded, not 1.0"),
        ({"kl_weight": -1.0}, "kl_weight must be zero or a positive number, not -1.0"),
    ],
)
def test_an_impossible_option_is_refused_with_what_is_possible(options, message):
    with pytest.raises(ValueError, match=message):
        mechanism(**options)
