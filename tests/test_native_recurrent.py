"""The compiled recurrences, and their twins in PyTorch, against the recurrence itself in float64."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.mechanism import Dims
from subquad.mechanisms.delta import DeltaAttention
from subquad.mechanisms.gated_delta import GatedDeltaAttention
from subquad.mechanisms.gated_linear import GatedLinearAttention
from subquad.mechanisms.retention import Retention
from subquad.ops import blocks, native
from subquad.ops.decay import decayed_product
from subquad.ops.delta_rule import delta_product

RULES = ("one decay", "decay by channel", "delta")
B, H = 2, 3


@pytest.fixture(params=["native", "torch"])
def tier(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("SUBQUAD_NATIVE", "0")
    elif native.backend().name == "torch":
        pytest.skip(native.backend().reason)
    return request.param


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def inputs(rule, length, d, e, *, fade=0.1, rows=B, heads=H):
    """Numbers that float32 holds, in float64."""
    q, v = normal(B, length, H, d, seed=0).transpose(1, 2), normal(B, H, length, e, seed=2)
    k = F.normalize(normal(B, H, length, d, seed=1), dim=-1)
    width = d if rule == "decay by channel" else 1
    log_decay = -fade * normal(rows, heads, length, width, seed=3).square()
    beta = normal(B, H, length, 1, seed=4).sigmoid() if rule == "delta" else None
    state = normal(B, H, d, e, seed=5)
    return [None if x is None else x.float().double() for x in (q, k, v, log_decay, beta, state)]


def exact(q, k, v, log_decay, beta, state):
    out = [v[:, :, :0]]
    for i in range(q.shape[2]):
        state = log_decay[:, :, i].exp()[..., None] * state
        u = v[:, :, i]
        if beta is not None:
            u = beta[:, :, i] * (u - (k[:, :, i, None] @ state)[:, :, 0])
        state = state + k[:, :, i, :, None] * u[:, :, None]
        out.append(q[:, :, i, None] @ state)
    return torch.cat(out, 2), state


def fast(q, k, v, log_decay, beta, state):
    if beta is None:
        return decayed_product(q, k, v, log_decay, state=state, given=q.dtype)
    return delta_product(q, k, v, beta, log_decay, state=state, given=q.dtype)


def with_gradients(rule, given):
    leaves = [None if x is None else x.detach().requires_grad_() for x in given]
    outputs = rule(*leaves)
    seeds = [normal(*x.shape, seed=6).to(x.dtype) for x in outputs]
    asked = [x for x in leaves if x is not None]
    found = torch.autograd.grad(outputs, asked, seeds, allow_unused=True, materialize_grads=True)
    return [*outputs, *found]


def single(given):
    return [None if x is None else x.float() for x in given]


def agree(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        assert_close(x.double(), y, rtol=1e-4, atol=2e-6 * max(1.0, y.abs().max().item() if y.numel() else 0))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("length", "d", "e"), [(0, 4, 5), (1, 1, 1), (63, 5, 70), (64, 16, 16), (65, 33, 3), (150, 20, 33)]
)
def test_any_sizes_give_the_recurrence_and_its_gradients(rule, length, d, e, tier, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 64)
    given = inputs(rule, length, d, e)
    agree(with_gradients(fast, single(given)), with_gradients(exact, given))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fade", [0.0, 1e-4, 30.0])
def test_slow_and_fast_decays_are_as_exact(rule, fade, tier):
    given = inputs(rule, 130, 8, 8, fade=fade)
    log_decay = given[3]
    assert log_decay is not None
    log_decay[:, :, 7:120:9] *= 1e5
    agree(with_gradients(fast, single(given)), with_gradients(exact, given))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("rows", "heads"), [(1, H), (1, 1)])
def test_decays_that_rows_or_heads_share_have_one_gradient(rule, rows, heads, tier):
    given = inputs(rule, 70, 6, 6, rows=rows, heads=heads)
    agree(with_gradients(fast, single(given)), with_gradients(exact, given))


@pytest.mark.parametrize("rule", RULES)
def test_decays_that_are_not_learnt_change_no_other_gradient(rule, tier):
    given = single(inputs(rule, 70, 6, 6))
    learnt = with_gradients(fast, given)
    frozen = with_gradients(lambda q, k, v, g, beta, state: fast(q, k, v, g.detach(), beta, state), given)
    for n, (x, y) in enumerate(zip(learnt, frozen, strict=True)):
        if n != 5:  # that of the decays
            assert_close(x, y)


@pytest.mark.parametrize("cls", [Retention, GatedLinearAttention, DeltaAttention, GatedDeltaAttention])
def test_a_mechanism_with_holes_gives_what_it_gives_in_float64(cls, tier):
    torch.manual_seed(0)
    mechanism = cls(Dims(heads=2, head_dim=6), causal=True)
    tokens = {
        name: normal(2, 2, 150, width, seed=n)
        for n, (name, width) in enumerate(mechanism.projections().items())
    }
    valid = torch.rand(2, 150, generator=torch.Generator().manual_seed(9)) < 0.6
    out = mechanism(**{name: x.float() for name, x in tokens.items()}, valid=valid)
    expected = mechanism.double()(**tokens, valid=valid)
    assert_close(out.double()[valid.any(1)], expected[valid.any(1)], rtol=1e-4, atol=1e-4)
