"""The compiled recurrences, and their twins in PyTorch, against the recurrence itself in float64."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.mechanism import Dims
from subquad.mechanisms.delta import DeltaAttention
from subquad.mechanisms.gated_delta import GatedDeltaAttention
from subquad.mechanisms.gated_linear import GatedLinearAttention
from subquad.mechanisms.retention import Retention
from subquad.ops.backends import using
from subquad.ops.native.library import missing
from subquad.ops.recurrence import NOTHING, blocks, decayed_product, delta_product, rows
from subquad.ops.recurrence.rows import Fusion
from subquad.ops.shared.rotary import turns

RULES = ("one decay", "decay by channel", "delta", "delta by channel")
B, H = 2, 3


@pytest.fixture(params=["cpu", "parallel", "reference"])
def tier(request):
    if request.param == "cpu" and (reason := missing()):
        pytest.skip(reason)
    with nullcontext() if request.param == "cpu" else using(request.param):  # float64 is not for kernels
        yield


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def inputs(rule, length, d, e, *, fade=0.1, rows=B, heads=H):
    """Numbers that float32 holds, in float64."""
    q, v = normal(B, length, H, d, seed=0).transpose(1, 2), normal(B, H, length, e, seed=2)
    k = F.normalize(normal(B, H, length, d, seed=1), dim=-1)
    width = d if "by channel" in rule else 1
    log_decay = -fade * normal(rows, heads, length, width, seed=3).square()
    beta = normal(B, H, length, 1, seed=4).sigmoid() if "delta" in rule else None
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


def fast(q, k, v, log_decay, beta, state, *, fusion=NOTHING):
    if beta is None:
        return decayed_product(q, k, v, log_decay, state=state, fusion=fusion)
    return delta_product(q, k, v, beta, log_decay, state=state, fusion=fusion)


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


def fusion_of(kind, *, length, d, e):
    """What is done around a recurrence, and the gates, in float64."""
    scale, gate = 1 + 0.1 * normal(e, seed=7), normal(B, length, H, e, seed=8).transpose(1, 2)
    turn = turns(torch.arange(B * length).reshape(B, length), d // 2, dtype=torch.float64)
    before = {
        "turned": {"q_scale": 0.5, "rotary": turn},
        "of length one": {"qk_l2norm_eps": 1e-6, "swish_values": True},
        "logits of decays": {"q_scale": 0.5, "gate_normalizer": 16.0},
        "normed only": {},
    }[kind]
    return Fusion(rms_norm_eps=1e-5, scale=scale, gate=None if kind == "normed only" else gate, **before)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("one decay", "turned"),
        ("one decay", "normed only"),
        ("decay by channel", "logits of decays"),
        ("delta", "of length one"),
        ("delta", "turned"),
    ],
)
@pytest.mark.parametrize(("length", "d", "e"), [(1, 2, 1), (70, 6, 5), (65, 64, 32)])
def test_what_is_done_around_a_recurrence_has_the_gradients_of_its_formula(
    rule, kind, length, d, e, tier, monkeypatch
):
    monkeypatch.setattr(blocks, "BLOCK", 64)
    given = inputs(rule, length, d, e)
    fusion = fusion_of(kind, length=length, d=d, e=e)
    of_float32 = fusion._replace(rotary=None if fusion.rotary is None else fusion.rotary.float())

    def ours(q, k, v, log_decay, beta, state, scale, gate):
        return fast(q, k, v, log_decay, beta, state, fusion=of_float32._replace(scale=scale, gate=gate))

    def formula(q, k, v, log_decay, beta, state, scale, gate):
        of = fusion._replace(scale=scale, gate=gate)
        made = rows.preprocess(rows.RecurrenceInputs(q, k, v, log_decay, beta), of)
        out, last = exact(made.q, made.k, made.v, made.log_decay, made.beta, state)
        return rows.postprocess(out, of), last

    given = [*given, fusion.scale, fusion.gate]
    given = [None if x is None else x.float().double() for x in given]
    agree(with_gradients(ours, single(given)), with_gradients(formula, given))


def test_a_forget_gate_for_a_head_of_one_channel_is_still_a_logit(tier):
    mechanism = GatedLinearAttention(Dims(heads=2, head_dim=1), causal=True)
    tokens = {name: normal(1, 2, 70, 1, seed=n) for n, name in enumerate(mechanism.projections())}
    out = mechanism(**{name: x.float() for name, x in tokens.items()})
    assert_close(out.double(), mechanism.double()(**tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", ["turn", "scale", "gate", "one logit for all channels"])
def test_what_does_not_fit_the_tokens_is_refused_before_kernels_read_past_its_end(wrong):
    q, k, v, log_decay = (-normal(B, H, 9, 4, seed=seed).abs().float() for seed in range(4))
    state = torch.zeros(B, H, 4, 4)
    given = {
        "turn": Fusion(rotary=torch.ones(1, 8, 4)),
        "scale": Fusion(rms_norm_eps=1e-5, scale=torch.ones(3)),
        "gate": Fusion(rms_norm_eps=1e-5, scale=torch.ones(4), gate=v[:, :, :8]),
        "one logit for all channels": Fusion(gate_normalizer=2.0),
    }[wrong]
    if given.gate_normalizer:
        log_decay = log_decay[..., :1]
    with pytest.raises(ValueError, match="do not fit"):
        decayed_product(q, k, v, log_decay, state=state, fusion=given)


@pytest.mark.parametrize("rule", ["one decay", "delta"])
@pytest.mark.parametrize("length", [64, 128, 150])
def test_one_decay_for_all_tokens_is_that_decay_at_each(rule, length, tier):
    q, k, v, _, beta, state = single(inputs(rule, length, 8, 8))
    shared = -torch.rand(1, H, 1, 1, generator=torch.Generator().manual_seed(9)).expand(1, H, length, 1)

    def with_decays(log_decay):
        rule = lambda q, k, v, beta, state: fast(q, k, v, log_decay, beta, state)  # noqa: E731
        return with_gradients(rule, [q, k, v, beta, state])

    for x, y in zip(with_decays(shared), with_decays(shared.contiguous()), strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 2.0, 0.3, 1e-3])
def test_every_number_of_half_precision_is_read_and_rounded_as_pytorch_does(dtype, factor, tier):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    smallest = torch.finfo(torch.float32).tiny / 1e-3  # kernels flush what is below it in float32
    fine = numbers.isfinite() & ((numbers.float().abs() > smallest) | (numbers == 0))
    v = numbers.where(fine, 0).reshape(1, 1, 512, 128)
    one = torch.ones(1, 1, 512, 1)
    out, _ = decayed_product(
        (factor * one).to(dtype), one.to(dtype), v, -1e6 * one, state=torch.zeros(1, 1, 1, 128)
    )
    assert_close(out, (torch.tensor(factor).to(dtype).float() * v.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [Retention, GatedLinearAttention, DeltaAttention, GatedDeltaAttention])
@pytest.mark.parametrize("width", [6, 32])
def test_half_precision_rounds_inputs_and_outputs_and_nothing_else(cls, dtype, width, tier, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 64)
    mechanism = cls(Dims(heads=2, head_dim=width), causal=True)
    tokens = {
        name: normal(2, 2, 150, size, seed=n).to(dtype)
        for n, (name, size) in enumerate(mechanism.projections().items())
    }
    out = mechanism(**tokens)
    expected = mechanism(**{name: x.float() for name, x in tokens.items()})
    assert out.dtype == dtype
    unit = torch.finfo(dtype).eps
    assert_close(out.float(), expected, rtol=unit, atol=1e-4)


@pytest.mark.parametrize("cls", [Retention, GatedLinearAttention, DeltaAttention, GatedDeltaAttention])
def test_a_mechanism_with_holes_gives_what_it_gives_in_float64(cls, tier):
    mechanism = cls(Dims(heads=2, head_dim=6), causal=True)
    tokens = {
        name: normal(2, 2, 150, width, seed=n)
        for n, (name, width) in enumerate(mechanism.projections().items())
    }
    valid = torch.rand(2, 150, generator=torch.Generator().manual_seed(9)) < 0.6
    out = mechanism(**{name: x.float() for name, x in tokens.items()}, valid=valid)
    expected = mechanism.double()(**tokens, valid=valid)
    assert_close(out.double()[valid.any(1)], expected[valid.any(1)], rtol=1e-4, atol=1e-4)
