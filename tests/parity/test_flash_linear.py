"""The recurrences beside flash-linear-attention's plain PyTorch: the same numbers, its layout and its scale.

Its functions scale queries by 1 / sqrt(d), which ours leave to the mechanism, and compute in float32. Its
kernels need a GPU; here the wiring to them is held against the plain functions of the same signature.
"""

import inspect
import math
import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.delta import DeltaAttention
from subquad.mechanisms.kda import KdaAttention
from subquad.mechanisms.retention import Retention
from subquad.ops.recurrence import decayed_product, delta_product, fla
from subquad.ops.recurrence.both_ways import both_ways
from subquad.ops.recurrence.rows import RecurrenceInputs

with warnings.catch_warnings():  # it warns that there is no GPU
    warnings.simplefilter("ignore")
    pytest.importorskip("fla.ops.gla.naive", exc_type=ImportError)
    from fla.ops.delta_rule.naive import delta_rule_chunkwise, delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.kda.gate import naive_kda_gate
    from fla.ops.kda.naive import naive_chunk_kda, naive_recurrent_kda
    from fla.ops.retention.naive import naive_retention
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

B, H, T, D, E = 2, 3, 150, 8, 6
SCALE = D**0.5  # undoes theirs


def close(ours, theirs):
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # float32, sums of 150 terms


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tokens():
    q, k = (F.normalize(normal(B, H, T, D, seed=seed), dim=-1) for seed in (0, 1))
    return q, k, normal(B, H, T, E, seed=2)


@pytest.fixture
def state():
    return normal(B, H, D, E, seed=3)


def decays(width):
    return F.logsigmoid(normal(B, H, T, width, seed=4)) / 4


def rates():
    return normal(B, H, T, 1, seed=5).sigmoid()


def theirs(*inputs):
    return tuple(x.transpose(1, 2) for x in inputs)


def test_decay_by_channel_is_gla(tokens, state):
    q, k, v = tokens
    log_decay = decays(D)
    ours = decayed_product(q, k, v, log_decay, state=state)
    out, last = naive_recurrent_gla(
        *theirs(SCALE * q, k, v, log_decay), initial_state=state, output_final_state=True
    )
    close(ours, (out.transpose(1, 2), last))


def test_one_decay_a_head_is_simple_gla(tokens, state):
    q, k, v = tokens
    log_decay = decays(1)
    ours = decayed_product(q, k, v, log_decay, state=state)
    out, last = naive_recurrent_simple_gla(
        *theirs(SCALE * q, k, v, log_decay[..., 0]), initial_state=state, output_final_state=True
    )
    close(ours, (out.transpose(1, 2), last))


def test_a_fixed_decay_is_retention(tokens, state):
    q, k, v = tokens
    gamma = torch.tensor([math.log1p(-(2.0 ** -(5 + h))) for h in range(H)])
    log_decay = gamma[:, None, None].expand(1, H, T, 1)
    out, _ = decayed_product(q, k, v, log_decay, state=0 * state)
    close(out, naive_retention(SCALE * q, k, v))


def test_its_layer_of_retention_is_ours_in_its_form(tokens):
    """Rotary embeddings, retention, and a norm with a learnt scale, epsilon 1e-5, and a gate."""
    q, k, v = (x[..., :E] for x in tokens)
    gate = normal(B, H, T, E, seed=6)
    mechanism = Retention(Dims(heads=H, head_dim=E), causal=True, form="fla")
    scale = torch.nn.init.uniform_(mechanism.get_parameter("scale"))
    angles = torch.arange(T)[:, None] * 10_000 ** (-torch.arange(0, E, 2) / E)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    q_turned, k_turned = (x * cos + torch.cat([-x[..., 3:], x[..., :3]], -1) * sin for x in (q, k))
    expected = F.rms_norm(naive_retention(q_turned, k_turned, v), (E,), scale, 1e-5) * F.silu(gate)
    close(mechanism(q, k, v, gate), expected)


def test_without_decay_the_delta_product_is_delta_net(tokens, state):
    q, k, v = tokens
    beta, nothing_fades = rates(), torch.zeros(1, 1, T, 1)
    ours = delta_product(q, k, v, beta, nothing_fades, state=state)
    close(ours, delta_rule_recurrence(SCALE * q, k, v, beta[..., 0], state))


def test_its_layer_of_delta_net_is_ours(tokens):
    """Without its convolutions: silu on q, k and v, lengths of one, and a norm with a learnt scale."""
    q, k, _ = tokens
    v, beta = normal(B, H, T, D, seed=2), normal(B, H, T, 1, seed=5)
    mechanism = DeltaAttention(Dims(heads=H, head_dim=D), causal=True)
    scale = torch.nn.init.uniform_(mechanism.get_parameter("scale"))
    unit_q, unit_k = (F.silu(x) * (F.silu(x).square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
    out, _ = delta_rule_recurrence(SCALE * unit_q, unit_k, F.silu(v), beta.sigmoid()[..., 0])
    close(mechanism(q, k, v, beta), F.rms_norm(out, (D,), scale, 1e-5))


def test_their_chunks_of_the_delta_rule_give_the_same(tokens, state):
    q, k, v = (x[:, :, :128] for x in tokens)  # theirs wants whole chunks
    beta = rates()[:, :, :128]
    ours = delta_product(q, k, v, beta, torch.zeros(1, 1, 128, 1), state=0 * state)
    close(ours, delta_rule_chunkwise(SCALE * q, k, v, beta[..., 0]))


def test_the_delta_product_is_gated_delta_net(tokens, state):
    q, k, v = tokens
    beta, log_decay = rates(), decays(1)
    ours = delta_product(q, k, v, beta, log_decay, state=state)
    out, last = naive_recurrent_gated_delta_rule(
        *theirs(SCALE * q, k, v, beta[..., 0], log_decay[..., 0]),
        initial_state=state,
        output_final_state=True,
    )
    close(ours, (out.transpose(1, 2), last))


def test_the_delta_product_with_decays_by_channel_is_kda(tokens, state):
    q, k, v = tokens
    beta, log_decay = rates(), decays(D)
    ours = delta_product(q, k, v, beta, log_decay, state=state)
    out, last = naive_recurrent_kda(
        *theirs(SCALE * q, k, v, log_decay, beta[..., 0]), initial_state=state, output_final_state=True
    )
    close(ours, (out.transpose(1, 2), last))


def test_their_chunks_of_kda_give_the_same(tokens, state):
    q, k, v, beta, log_decay = (x[:, :, :128] for x in (*tokens, rates(), decays(D)))
    ours = delta_product(q, k, v, beta, log_decay, state=state)
    out, last = naive_chunk_kda(
        *theirs(SCALE * q, k, v, log_decay, beta[..., 0]), initial_state=state, output_final_state=True
    )
    close(ours, (out.transpose(1, 2), last))


def test_kimis_layer_is_kda(tokens):
    """Without its convolutions and its scale, with the gate of decays that it has in its kernel."""
    q, k, _ = tokens
    v, gate, alpha = (normal(B, H, T, D, seed=seed) for seed in (2, 6, 7))
    beta = normal(B, H, T, 1, seed=5)
    mechanism = KdaAttention(Dims(heads=H, head_dim=D), causal=True)
    scale = torch.nn.init.uniform_(mechanism.get_parameter("scale"))
    unit_q, unit_k = (F.silu(x) * (F.silu(x).square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
    log_decay = naive_kda_gate(alpha.transpose(1, 2), mechanism.log_A, mechanism.b.flatten())
    rows = theirs(SCALE * unit_q, unit_k, F.silu(v))
    out, _ = naive_recurrent_kda(*rows, g=log_decay, beta=beta.sigmoid()[..., 0].transpose(1, 2))
    expected = F.rms_norm(out.transpose(1, 2), (D,), scale, 1e-5) * gate.sigmoid()
    close(mechanism(q, k, v, beta, alpha, gate), expected)


@pytest.mark.parametrize("rule", ["simple_gla", "gla", "gated_delta_rule", "kda"])
def test_both_ways_is_two_of_their_runs_of_which_one_is_flipped(rule, tokens):
    """What a token writes itself stands in both runs, and comes off once."""
    (q, k, v), beta = tokens, rates()
    log_decay = decays(D if rule in ("gla", "kda") else 1)

    def run(q, k, v, log_decay, beta):
        q, k, v, log_decay, beta = theirs(SCALE * q, k, v, log_decay, beta)
        if rule == "gla":
            out, _ = naive_recurrent_gla(q, k, v, log_decay)
        elif rule == "simple_gla":
            out, _ = naive_recurrent_simple_gla(q, k, v, log_decay[..., 0])
        elif rule == "kda":
            out, _ = naive_recurrent_kda(q, k, v, log_decay, beta[..., 0])
        else:
            out, _ = naive_recurrent_gated_delta_rule(q, k, v, beta[..., 0], log_decay[..., 0])
        return out.transpose(1, 2)

    inputs = (q, k, v, log_decay, beta)
    delta = rule in ("gated_delta_rule", "kda")
    own = (q * k).sum(-1, keepdim=True) * v * (beta if delta else 1)
    expected = run(*inputs) + run(*(x.flip(2) for x in inputs)).flip(2) - own
    ours = RecurrenceInputs(q, k, v, log_decay, beta if delta else None)
    close(both_ways(ours, state=torch.zeros(B, H, D, E)), expected)


def plain(name):
    """The plain functions behind the signatures of the kernels; those of `gla` have no scale."""

    def chunk_gla(q, k, v, g, scale, initial_state, output_final_state):
        return naive_recurrent_gla(q * scale * SCALE, k, v, g, initial_state, output_final_state)

    def chunk_gated_delta_rule(q, k, v, g, beta, **options):
        return naive_recurrent_gated_delta_rule(q, k, v, beta, g, **options)

    return {
        "gla": chunk_gla,
        "simple_gla": naive_recurrent_simple_gla,
        "gated_delta_rule": chunk_gated_delta_rule,
        "kda": naive_recurrent_kda,
    }[name]


def wired(tokens, log_decay, beta, state):
    q, k, v = tokens
    return fla.product(RecurrenceInputs(q, k, v, log_decay, beta), state, torch.float32)


@pytest.mark.parametrize("width", [1, D])
def test_the_wiring_to_their_kernels_of_decay_is_right(width, tokens, state, monkeypatch):
    monkeypatch.setattr(fla, "kernel", plain)
    log_decay = decays(width)
    q, k, v = tokens
    close(wired(tokens, log_decay, None, state), decayed_product(q, k, v, log_decay, state=state))


def test_the_wiring_to_their_kernels_of_the_delta_rule_is_right(tokens, state, monkeypatch):
    monkeypatch.setattr(fla, "kernel", plain)
    q, k, v = tokens
    for log_decay in (decays(1), torch.zeros(1, 1, T, 1), decays(D)):
        ours = delta_product(q, k, v, rates(), log_decay, state=state)
        close(wired(tokens, log_decay, rates(), state), ours)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gla", {"q", "k", "v", "g", "scale", "initial_state", "output_final_state"}),
        ("simple_gla", {"q", "k", "v", "g", "scale", "initial_state", "output_final_state"}),
        ("gated_delta_rule", {"q", "k", "v", "g", "beta", "scale", "initial_state", "output_final_state"}),
        ("kda", {"q", "k", "v", "g", "beta", "scale", "initial_state", "output_final_state"}),
    ],
)
def test_their_kernels_take_what_we_hand_them(name, wanted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = fla.kernel(name)
    assert wanted <= inspect.signature(kernel).parameters.keys()
