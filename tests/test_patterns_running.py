"""Laws of attention over a pattern: it is the dense softmax over the pairs, at the price of the pairs."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.measure.flops import count_flops
from subquad.measure.memory import peak_bytes
from subquad.mechanisms.pattern import PatternAttention
from subquad.patterns import (
    CAUSAL,
    Blocks,
    Dilated,
    Fixed,
    Global,
    Local,
    PerHead,
    Random,
    Ring,
    Strided,
    Summaries,
    attend,
    attend_rows,
)

PATTERNS = [
    Local(3),
    Dilated(2, 3) | Global(1),
    Local(3) | Global(2) | Random(3),
    (Local(3) | Global(2) | Random(3)) & CAUSAL,
    Local(4) | Strided(5),
    Fixed(6, 2) & CAUSAL,
    Summaries(6, 2) & CAUSAL,  # the first rows see nothing
    Summaries(6, 2, before=3),
    Strided(2) & Local(7),
    Ring(2, start=1) | Global(1),
    Blocks(Local(1) | Global(1, last=1) | Random(2), 4),
    PerHead(Local(1), Random(4)) & CAUSAL,
    PerHead(Local(1), Global(1)) | Random(1),
]


def inputs(n, *, batch=2, heads=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, heads, n, 4)
    return torch.randn(shape, dtype=torch.float64, generator=generator).unbind(0)


def dense(pattern, q, k, v):
    """Softmax over all pairs, where those outside the pattern weigh nothing."""
    weights = (q @ k.mT / q.shape[-1] ** 0.5).exp() * pattern.mask(q.shape[2])
    return weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-300)


@pytest.mark.parametrize("n", [1, 11, 29])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_it_is_dense_softmax_over_the_pairs(pattern, n):
    q, k, v = inputs(n)
    assert_close(attend(pattern, q, k, v, valid=None), dense(pattern, q, k, v))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_its_gradients_are_those_of_dense_softmax(pattern):
    x = [t.requires_grad_() for t in inputs(19)]
    weight = torch.linspace(-1, 1, 4, dtype=torch.float64)
    fast, exact = (
        torch.autograd.grad((out * weight).sum(), x)
        for out in (attend(pattern, *x, valid=None), dense(pattern, *x))
    )
    assert_close(fast, exact)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_each_row_of_a_batch_has_a_length_of_its_own_wherever_its_padding_stands(pattern):
    q, k, v = inputs(24)
    valid = torch.ones(2, 24, dtype=torch.bool)
    valid[1] = torch.arange(24) % 5 < 2
    out = attend(pattern, q, k, v, valid=valid)
    assert_close(out[:1], dense(pattern, q[:1], k[:1], v[:1]))
    short = (x[1:, :, valid[1]] for x in (q, k, v))
    assert_close(out[1:, :, valid[1]], dense(pattern, *short))
    assert not out[1:, :, ~valid[1]].any()


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if not p.needs_end], ids=repr)
def test_a_row_by_itself_is_the_row_of_the_sequence(pattern):
    pattern = pattern & CAUSAL
    q, k, v = inputs(29)
    i = torch.tensor([[28, 3, 0], [17, 17, 5]])
    rows = attend_rows(pattern, q.gather(2, i[:, None, :, None].expand(2, 2, 3, 4)), k, v, i=i)
    whole = attend(pattern, q, k, v, valid=None)
    assert_close(rows, whole.gather(2, i[:, None, :, None].expand(2, 2, 3, 4)))


def test_a_pair_that_many_terms_allow_counts_once():
    q, k, v = inputs(17)
    overlapping = Local(3) | Global(2) | Random(5) | Local(2) | Strided(1)
    assert_close(attend(overlapping, q, k, v, valid=None), dense(Local(17), q, k, v))


def test_scores_beyond_any_exponential_are_fine():
    q, k, v = inputs(29)
    out = attend(Local(3) | Global(1) | Random(2), 1e4 * q, 1e4 * k, torch.ones_like(v), valid=None)
    assert_close(out, torch.ones_like(v))


def work(pattern, n):
    q, k, v = inputs(n, batch=1)
    return count_flops(lambda: attend(pattern, q, k, v, valid=None))


@pytest.mark.parametrize(
    "pattern",
    [
        Local(8) | Global(2) | Random(3),
        (Local(8) | Global(2) | Random(3)) & CAUSAL,
        Dilated(8, 5),
        Blocks(Local(1) | Global(1, last=1) | Random(2), 16),
        Strided(4) & Local(20),
        Ring(5, start=1) | Global(1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("measure", [count_flops, peak_bytes])
def test_twice_the_length_is_twice_the_work(pattern, measure):
    costs = []
    for n in (1024, 2048):
        q, k, v = inputs(n, batch=1)
        costs.append(measure(lambda x=(q, k, v): attend(pattern, *x, valid=None)))
    assert costs[1] / costs[0] < 2.1


@pytest.mark.parametrize("kind", [Strided, lambda l: Local(l) | Strided(l), lambda l: Fixed(l, 1)])
def test_strides_of_the_root_of_the_length_cost_its_power_three_halves(kind):
    exponents = [
        math.log(work(kind(round(m**0.5)), m) / work(kind(round(n**0.5)), n)) / math.log(m / n)
        for n, m in pairwise((256, 1024, 4096))
    ]
    assert max(exponents) < 1.55


def test_work_is_within_four_times_the_pairs():
    for pattern in (Local(64), Local(200), Local(64) & CAUSAL, Strided(32), Blocks(Local(1), 64)):
        n, d = 1024, 4
        pairs = pattern.mask(n).sum().item()
        floor = 2 * pairs * (d + d) * 2  # heads
        assert floor <= work(pattern, n) < 4 * floor, pattern


def test_a_stream_reads_only_the_keys_that_it_sees():
    mechanism = PatternAttention(
        Dims(heads=2, head_dim=4), causal=True, expr="Local(8) | Global(2) | Random(3)"
    )
    costs = []
    for past in (100, 1000):
        q, k, v = inputs(past)
        _, state = mechanism.step(q, k, v)
        one = (x[:, :, :1] for x in (q, k, v))
        costs.append(count_flops(lambda one=one, state=state: mechanism.step(*one, state=state)))
    assert costs[0] == costs[1]


def test_each_head_gets_its_own_pattern_back():
    pattern = PerHead(Local(1), Strided(3), Random(2), Local(1))
    q, k, v = inputs(17, heads=4)
    assert_close(attend(pattern, q, k, v, valid=None), dense(pattern, q, k, v))


def test_heads_must_be_as_many_as_patterns():
    q, k, v = inputs(5)
    with pytest.raises(ValueError, match="for 3 heads, not 2"):
        attend(PerHead(Local(1), Local(2), Local(3)), q, k, v, valid=None)
