"""The recurrences' kernels against the recurrence itself, token by token in float64."""

import pytest
import torch
from torch.nn import functional as F

from subquad.ops.backends import using
from subquad.ops.recurrence import decayed_product, delta_product, triton_launches
from subquad.ops.recurrence.rows import Fusion
from subquad.ops.triton.launch import recorded

H = 2
RULES = ("one decay for all", "one decay", "decay by channel", "delta", "gated delta")
NARROW = {torch.bfloat16: 3e-2, torch.float16: 3e-3}  # of a result's norm: operands and outputs are rounded
SIZES = [(1, 8, 5), (63, 8, 8), (65, 5, 24), (130, 20, 8)]


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def inputs(rule, n, d, e, dtype=torch.float32):
    """q, k, v, log_decay, beta and state as kernels take them; q and v strided as projections are."""
    q, v = (normal(1, n, H, width, seed=seed).to(dtype).transpose(1, 2) for seed, width in ((0, d), (1, e)))
    k = F.normalize(normal(1, H, n, d, seed=2) + 0.5, dim=-1).to(dtype)  # alike, some of them
    beta = normal(1, H, n, 1, seed=4).sigmoid().float() if "delta" in rule else None
    return [q, k, v, decays(rule, n, d), beta, normal(1, H, d, e, seed=5).float()]


def decays(rule, n, d):
    """Logarithms, of which some are next to nothing and some leave nothing."""
    if rule in ("one decay for all", "delta"):
        return -normal(1, H, 1, 1, seed=3).abs().float().expand(1, H, n, 1) * (rule != "delta")
    logs = -0.3 * normal(1, H, n, d if rule == "decay by channel" else 1, seed=3).square().float()
    logs[:, :, n // 3 : n // 3 + 3] = -1e-6
    logs[:, :, n // 2], logs[:, :, n // 4] = -200.0, -60.0
    return logs


def exact(q, k, v, log_decay, beta, state):
    out = []
    for i in range(q.shape[2]):
        state = log_decay[:, :, i].exp()[..., None] * state
        u = v[:, :, i]
        if beta is not None:
            u = beta[:, :, i] * (u - (k[:, :, i, None] @ state)[:, :, 0])
        state = state + k[:, :, i, :, None] * u[:, :, None]
        out.append((q[:, :, i, None] @ state)[:, :, 0])
    return torch.stack(out, 2), state


def product(q, k, v, log_decay, beta, state, **fusion):
    if beta is None:
        return decayed_product(q, k, v, log_decay, state=state, **fusion)
    return delta_product(q, k, v, beta, log_decay, state=state, **fusion)


def kernels(*tensors, **fusion):
    with using("triton"):
        return product(*tensors, **fusion)


def wide(tensors):
    return [None if x is None else x.double() for x in tensors]


def with_gradients(rule, tensors, *, learnt):
    """Outputs, and gradients of all inputs; of decays, where these are learnt."""
    chosen = [i for i, x in enumerate(tensors) if x is not None and (i != 3 or learnt)]
    return gradients(rule, tensors, chosen)


def gradients(function, tensors, chosen):
    """Outputs, and gradients of the tensors of these numbers."""
    leaves = [x.detach().requires_grad_() if i in chosen else x for i, x in enumerate(tensors)]
    outputs = function(*leaves)
    seeds = [normal(*x.shape, seed=6 + i).to(x) for i, x in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, [leaves[i] for i in chosen], seeds)]


def distance(ours, theirs):
    """The largest, in norm, as a part of what there should be."""
    pairs = zip(ours, theirs, strict=True)
    return max(((x.double() - y).norm() / y.norm().clamp(min=1e-3)).item() for x, y in pairs)


def far(tensors, *, learnt):
    ours = with_gradients(kernels, tensors, learnt=learnt)
    return distance(ours, with_gradients(exact, wide(tensors), learnt=learnt))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("n", "d", "e"), SIZES)
def test_any_sizes_give_the_recurrence_and_its_gradients(rule, n, d, e):
    assert far(inputs(rule, n, d, e), learnt=rule in ("decay by channel", "gated delta")) < 1e-6


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", NARROW)
def test_wide_heads_are_taken_in_parts(rule, dtype):
    tensors = inputs(rule, 20, 70, 66, dtype)
    ours = with_gradients(kernels, tensors, learnt=True)
    assert distance(ours, with_gradients(exact, wide(tensors), learnt=True)) < NARROW[dtype]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", NARROW)
def test_half_precision_is_as_exact_as_its_rounding(rule, dtype):
    tensors = inputs(rule, 70, 16, 16, dtype)
    ours = with_gradients(kernels, tensors, learnt=True)
    assert distance(ours, with_gradients(exact, wide(tensors), learnt=True)) < NARROW[dtype]
    assert [x.dtype for x in ours] == [dtype, torch.float32, *(x.dtype for x in tensors if x is not None)]


@pytest.mark.parametrize("rule", RULES)
def test_a_program_takes_several_chunks_and_another_goes_on(rule, monkeypatch):
    monkeypatch.setattr(triton_launches, "MOST_UNITS", 2)
    monkeypatch.setattr(triton_launches, "PROGRAMS", 1)
    assert far(inputs(rule, 200, 8, 8), learnt=rule == "decay by channel") < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_what_is_forgotten_wholly_costs_nothing(rule):
    tensors = inputs(rule, 40, 8, 8)
    logs = tensors[3]
    (logs[:, :, :1] if logs.stride(2) == 0 else logs[:, :, 17:18]).fill_(-torch.inf)
    assert far(tensors, learnt=False) < 1e-6


def test_decays_that_heads_share_have_one_gradient():
    tensors = inputs("one decay", 40, 8, 8)
    tensors[3] = tensors[3][:, :1]
    assert far(tensors, learnt=True) < 1e-6


def test_padding_that_writes_and_fades_nothing_leaves_no_trace():
    q, k, v, log_decay, beta, state = inputs("decay by channel", 40, 8, 8)
    real = torch.rand(40, generator=torch.Generator().manual_seed(7)) < 0.6
    padded = [x.masked_fill(~real[:, None], 0) for x in (k, v, log_decay)]
    out, last = kernels(q, *padded, beta, state)
    short, last_of_short = kernels(*(x[:, :, real] for x in (q, k, v, log_decay)), beta, state)
    torch.testing.assert_close(out[:, :, real], short)
    torch.testing.assert_close(last, last_of_short)


ROTARY = torch.cat([normal(1, 40, 4, seed=8).cos(), normal(1, 40, 4, seed=8).sin()], -1)
NORM = {"rms_norm_eps": 1e-5, "scale": normal(8, seed=9)}
FUSIONS = {
    "retention": ("one decay for all", Fusion(**NORM, q_scale=0.3, rotary=ROTARY)),
    "gated-linear": ("decay by channel", Fusion(**NORM, q_scale=0.3, gate_normalizer=16.0)),
    "gated-delta": ("gated delta", Fusion(**NORM, qk_l2norm_eps=1e-6, swish_values=True)),
    "swish alone": ("one decay", Fusion(swish_values=True)),
}


def fused(name, n, dtype, *, gated):
    """The tensors that a fusion is learnt with, and the function of them."""
    rule, fusion = FUSIONS[name]
    tensors = [*inputs(rule, n, 8, 8, dtype), NORM["scale"].float(), normal(1, H, n, 8, seed=10).to(dtype)]
    if fusion.gate_normalizer:
        tensors[3] = normal(1, H, n, 8, seed=3).to(dtype)  # logits

    def function(q, k, v, log_decay, beta, state, scale, gate):
        own = fusion._replace(rotary=None if fusion.rotary is None else fusion.rotary[:, :n].to(state.dtype))
        if fusion.rms_norm_eps:
            own = own._replace(scale=scale, gate=gate if gated else None)
        return product(q, k, v, log_decay, beta, state, fusion=own)

    return tensors, function


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_mechanisms_do_to_rows_is_done_to_those_of_kernels(name, dtype):
    gated = name != "gated-delta"
    tensors, function = fused(name, 40, dtype, gated=gated)
    last = 6 if name == "swish alone" else 8 if gated else 7
    chosen = [i for i, x in enumerate(tensors[:last]) if x is not None]
    with using("triton"):
        ours = gradients(function, tensors, chosen)
    with using("reference"):
        theirs = gradients(function, wide(tensors), chosen)
    limit = 1e-6 if dtype == torch.float32 else 5e-2  # the norm of few channels makes more of roundings
    assert distance(ours, theirs) < limit


@pytest.mark.parametrize("name", FUSIONS)
def test_a_token_at_a_time_gives_what_a_sequence_does(name):
    n = 3
    tensors, function = fused(name, n, torch.float32, gated=True)
    *tokens, state, scale, gate = tensors
    with using("reference"):
        out, last = function(*wide(tensors))
    steps = []
    for i in range(n):
        here = [None if x is None else x[:, :, i : i + 1] for x in (*tokens, gate)]
        _, fusion = FUSIONS[name]
        rotary = None if fusion.rotary is None else fusion.rotary[:, i : i + 1].float()
        own = fusion._replace(rotary=rotary, scale=scale, gate=here[-1]) if fusion.rms_norm_eps else fusion
        with recorded(90) as launches:
            kernels(*here[:-1], state, fusion=own)
        assert len(launches) == 1
        with torch.no_grad():
            step, after = kernels(*here[:-1], state, fusion=own, in_place=True)
        assert after is state
        steps.append(step)
    assert distance([torch.cat(steps, 2), state], [out, last]) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_launches_do_not_grow_with_the_length(rule):
    def count(n):
        with recorded(90) as launches:
            with_gradients(kernels, inputs(rule, n, 8, 8), learnt=True)
        return len(launches)

    assert count(70) == count(700)
