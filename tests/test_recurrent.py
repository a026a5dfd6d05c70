"""The laws of the gated recurrences; those of the contract are in test_contract.py, in one chunk each."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.measure.memory import peak_bytes
from subquad.mechanism import Dims
from subquad.mechanisms.delta import DeltaAttention
from subquad.mechanisms.gated_delta import GatedDeltaAttention
from subquad.mechanisms.gated_linear import GatedLinearAttention
from subquad.mechanisms.kda import KdaAttention
from subquad.mechanisms.lightning import LightningAttention
from subquad.mechanisms.retention import Retention, RetentionState
from subquad.mechanisms.ssd import SsdAttention
from subquad.ops.recurrence import blocks, decay, decayed_product, delta_product
from subquad.ops.recurrence.both_ways import both_ways
from subquad.ops.recurrence.rows import RecurrenceInputs

DIMS = Dims(heads=2, head_dim=4)
ALL = (
    Retention,
    LightningAttention,
    GatedLinearAttention,
    SsdAttention,
    DeltaAttention,
    GatedDeltaAttention,
    KdaAttention,
)
OPEN, SHUT = 1e4, -1e4  # as good as infinite for a sigmoid


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make(cls, *, causal=True, **options):
    torch.manual_seed(0)
    return cls(DIMS, causal=causal, **options).double()


def sequence(mechanism, length, batch=2):
    widths = mechanism.projections().items()
    return {name: normal(batch, 2, length, width, seed=n) for n, (name, width) in enumerate(widths)}


def decayed(q, k, v, log_decay, *, state=None):
    state = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=q.dtype) if state is None else state
    return decayed_product(q, k, v, log_decay, state=state)


def delta(q, k, v, beta, log_decay, *, state=None):
    state = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=q.dtype) if state is None else state
    return delta_product(q, k, v, beta, log_decay, state=state)


def normed(o, epsilon=1e-5):
    return o / (o.square().mean(-1, keepdim=True) + epsilon).sqrt()


# chunks


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_what_a_chunk_or_a_block_leaves_is_what_the_next_one_finds(cls, padded, causal, monkeypatch):
    monkeypatch.setattr(decay, "CHUNK", 8)
    monkeypatch.setattr(blocks, "BLOCK", 24)
    mechanism = make(cls, causal=causal)
    inputs = sequence(mechanism, 61)
    valid = torch.rand(2, 61, generator=torch.Generator().manual_seed(9)) < (0.6 if padded else 2)
    fast, exact = mechanism(**inputs, valid=valid), mechanism.definition(**inputs, valid=valid)
    assert_close(fast * valid[:, None, :, None], exact)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
@pytest.mark.parametrize("width", [1, 4])
def test_a_state_given_at_the_start_fades_and_is_read_like_any_other(width, length):
    q, k, v = (normal(1, 2, length + 9, 4, seed=seed) for seed in range(3))
    log_decay = -normal(1, 2, length + 9, width, seed=3).square()
    whole, last = decayed(q, k, v, log_decay)
    _, state = decayed(*(x[:, :, :9] for x in (q, k, v, log_decay)))
    out, end = decayed(*(x[:, :, 9:] for x in (q, k, v, log_decay)), state=state)
    assert_close(out, whole[:, :, 9:])
    assert_close(end, last)


# limits


@pytest.mark.parametrize("width", [1, 4])
def test_where_nothing_fades_it_is_linear_attention_without_its_denominator(width):
    q, k, v = (normal(2, 2, 150, 4, seed=seed) for seed in range(3))
    out, state = decayed(q, k, v, torch.zeros(1, 1, 150, width).double())
    assert_close(out, (q @ k.mT).tril() @ v)
    assert_close(state, k.mT @ v)


def test_with_open_forget_gates_gated_linear_is_linear_attention():
    mechanism = make(GatedLinearAttention)
    inputs = sequence(mechanism, 40)
    inputs["forget"] = torch.full_like(inputs["forget"], OPEN)
    o = (inputs["q"] @ inputs["k"].mT / 2).tril() @ inputs["v"]
    assert_close(mechanism(**inputs), F.silu(inputs["gate"]) * normed(o))


@pytest.mark.parametrize("rule", ["decay", "delta"])
def test_a_decay_for_all_channels_is_that_decay_in_each(rule):
    q, k, v = (normal(1, 2, 100, 4, seed=seed) for seed in range(3))
    log_decay, beta = -normal(1, 2, 100, 1, seed=3).square(), normal(1, 2, 100, 1, seed=4).sigmoid()

    def product(log_decay):
        if rule == "decay":
            return decayed(q, k, v, log_decay)
        return delta(q, F.normalize(k, dim=-1), v, beta, log_decay)

    assert_close(product(log_decay.expand(-1, -1, -1, 4)), product(log_decay))


def test_where_channels_fade_alike_kda_is_gated_delta_with_another_gate():
    kda, gated = make(KdaAttention), make(GatedDeltaAttention)
    inputs = sequence(gated, 40)
    for parameter in (kda.log_A, kda.b, gated.log_A, gated.b):
        torch.nn.init.ones_(parameter)
    one, gate = gated(**inputs), inputs["gate"]
    each = kda(**{**inputs, "alpha": inputs["alpha"].expand(-1, -1, -1, 4)})
    assert_close(gate * each, one)  # swish(x) = x sigmoid(x)


def test_where_nothing_is_alike_kda_adds_as_gated_linear_does():
    k = torch.eye(4).double().expand(1, 2, 4, 4)  # keys at right angles: nothing to overwrite
    q, v = normal(1, 2, 4, 4), normal(1, 2, 4, 4, seed=1)
    log_decay, one = -normal(1, 2, 4, 4, seed=2).square(), torch.ones(1, 2, 4, 1).double()
    assert_close(delta(q, k, v, one, log_decay), decayed(q, k, v, log_decay))


def test_where_nothing_fades_gated_delta_is_delta():
    gated, plain = make(GatedDeltaAttention), make(DeltaAttention)
    inputs = sequence(gated, 40)
    inputs["alpha"] = torch.full_like(inputs["alpha"], SHUT)  # softplus of it is 0, and exp(-A 0) is 1
    q, k, v, beta = (inputs[name] for name in ("q", "k", "v", "beta"))
    assert_close(gated(**inputs), F.silu(inputs["gate"]) * plain(q, k, v, beta))


@pytest.mark.parametrize(
    ("cls", "gate", "value"),
    [
        (GatedLinearAttention, "forget", 100 * SHUT),
        (GatedDeltaAttention, "alpha", OPEN),
        (SsdAttention, "dt", OPEN),
        (KdaAttention, "alpha", OPEN),
    ],
)
def test_a_gate_can_make_it_forget_everything_at_once(cls, gate, value):
    mechanism = make(cls)
    inputs = sequence(mechanism, 40)
    inputs[gate][:, :, 20] = value
    anew = mechanism(**{name: x[:, :, 20:] for name, x in inputs.items()})
    assert_close(mechanism(**inputs)[:, :, 20:], anew)


# retention


def test_retention_fades_by_a_32nd_a_token_in_the_first_head_and_by_a_64th_in_the_next():
    q, k, v, gate = torch.zeros(4, 1, 2, 65, 4).double()
    k[:, :, 0, 0] = v[:, :, 0, 0] = 1
    _, state = make(Retention).step(q, k, v, gate)
    assert_close(state.S[0, :, 0, 0], torch.tensor([(31 / 32) ** 64, (63 / 64) ** 64]).double())


def test_retention_sees_differences_of_positions_only():
    mechanism = make(Retention)
    inputs = tuple(sequence(mechanism, 40).values())
    nothing = torch.zeros(2, 2, 4, 4).double()
    for start in (1, 1000):
        late, _ = mechanism.step(*inputs, state=RetentionState(nothing, torch.tensor([start, 3 * start])))
        assert_close(late, mechanism(*inputs))


def retnet(q, k, v, gate):
    """The paper's parallel form with normalised scores, and the theta and the norm of the authors' code."""
    n, d = q.shape[2:]
    theta = 10_000 ** -torch.linspace(0, 1, d // 2).double()
    turn = torch.polar(torch.ones(n, 1).double(), torch.arange(n)[:, None] * theta)
    q, k = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn for x in (q, k))
    gamma = 1 - 2.0 ** -(5 + torch.arange(2).double())[:, None, None]
    D = (gamma ** (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0)).tril()
    R = (q @ k.mH).real / d**0.5 * D / D.sum(-1, keepdim=True).sqrt()
    return F.silu(gate) * normed(R / R.sum(-1, keepdim=True).abs().clamp(min=1) @ v, 1e-6)


def beside_retnet(size):
    """How far retention is from it, relatively, with inputs of one size and channels in our order."""
    mechanism = make(Retention)
    inputs = {name: size * x for name, x in sequence(mechanism, 40).items()}
    expected = retnet(**inputs)
    for name in ("q", "k"):
        inputs[name] = inputs[name].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return ((mechanism(**inputs) - expected).norm() / expected.norm()).item()


def test_retention_is_that_of_the_authors_where_outputs_are_large_before_the_norm():
    assert beside_retnet(size=10) < 1e-6


def test_the_norm_does_not_undo_what_normalises_scores_where_outputs_are_small():
    assert beside_retnet(size=0.1) > 0.05


def test_retention_learns_a_scale_in_the_form_of_flash_linear_attention_only():
    learnt = {form: [*dict(make(Retention, form=form).named_parameters())] for form in ("torchscale", "fla")}
    assert learnt == {"torchscale": [], "fla": ["scale"]}


def test_retention_names_its_forms():
    with pytest.raises(ValueError, match="'retention': form must be one of torchscale, fla, not 'xpos'"):
        Retention(DIMS, causal=True, form="xpos")


def test_retention_names_the_remedy_for_an_odd_head():
    with pytest.raises(ValueError, match="'retention' turns pairs of channels: head_dim must be even, not 3"):
        Retention(Dims(heads=2, head_dim=3), causal=True)


def test_gated_linear_refuses_a_root_that_is_none():
    with pytest.raises(ValueError, match="'gated-linear': tau must be a positive number, not 0"):
        GatedLinearAttention(DIMS, causal=True, tau=0)


# both ways


def flipped(inputs):
    return {name: x.flip(2) for name, x in inputs.items()}


@pytest.mark.parametrize("cls", [cls for cls in ALL if cls is not Retention])
def test_a_reversed_sequence_has_reversed_outputs(cls):
    mechanism = make(cls, causal=False)
    inputs = sequence(mechanism, 40)
    assert_close(mechanism(**flipped(inputs)), mechanism(**inputs).flip(2))


def test_retention_tells_what_is_before_from_what_is_behind():
    mechanism = make(Retention, causal=False)
    inputs = sequence(mechanism, 40)
    assert (mechanism(**flipped(inputs)) - mechanism(**inputs).flip(2)).abs().max() > 1e-2


def test_where_nothing_fades_all_tokens_see_each_other_alike_and_themselves_once():
    mechanism = make(GatedLinearAttention, causal=False)
    inputs = sequence(mechanism, 150)
    inputs["forget"] = torch.full_like(inputs["forget"], OPEN)
    o = inputs["q"] @ inputs["k"].mT @ inputs["v"] / 2
    assert_close(mechanism(**inputs), F.silu(inputs["gate"]) * normed(o))


def test_retention_both_ways_fades_with_distance_and_turns_by_position():
    mechanism = make(Retention, causal=False)
    inputs = sequence(mechanism, 40)
    q, k = (torch.complex(*inputs[name].chunk(2, -1)) for name in ("q", "k"))
    n = torch.arange(40)[:, None]
    turn = torch.polar(torch.ones(40, 1).double(), n * 10_000 ** -torch.linspace(0, 1, 2).double())
    gamma = 1 - 2.0 ** -(5 + torch.arange(2).double())[:, None, None]
    o = ((q * turn) @ (k * turn).mH).real / 2 * gamma ** (n - n.mT).abs() @ inputs["v"]
    assert_close(mechanism(**inputs), F.silu(inputs["gate"]) * normed(o, 1e-6))


@pytest.mark.parametrize("cls", ALL)
def test_one_token_reads_both_ways_what_it_reads_one_way(cls):
    inputs = sequence(make(cls), 1)
    assert_close(make(cls, causal=False)(**inputs), make(cls)(**inputs))


@pytest.mark.parametrize("cls", ALL)
def test_the_last_token_reads_both_ways_what_it_reads_one_way(cls):
    inputs = sequence(make(cls), 90)
    both, one = make(cls, causal=False)(**inputs), make(cls)(**inputs)
    assert_close(both[:, :, -1], one[:, :, -1])
    assert (both[:, :, 0] - one[:, :, 0]).abs().max() > 1e-3


def test_keys_and_values_of_both_directions_have_what_a_direction_must_have():
    none = torch.zeros(1, 2, 5, 4)
    with pytest.raises((ValueError, TypeCheckError), match=r"decays of 3 channels|Type-check"):
        both_ways(RecurrenceInputs(none, none, none, none[..., :3]), state=torch.zeros(1, 2, 4, 4))


# lightning and ssd


def test_lightning_fades_by_the_powers_of_two_of_linear_biases():
    q, k, v, gate = torch.zeros(4, 1, 2, 9, 4).double()
    k[:, :, 0, 0] = v[:, :, 0, 0] = 1
    _, state = make(LightningAttention).step(q, k, v, gate)
    rates = torch.tensor([1 / 16, 1 / 256]).double()  # of two heads
    assert_close(state.S[0, :, 0, 0], (-8 * rates).exp() * F.silu(torch.ones(2).double()) ** 2)


@pytest.mark.parametrize(("layer", "factor"), [(0, 1), (1, 2 / 3), (2, 1 / 3), (3, 0)])
def test_later_layers_of_lightning_forget_more_slowly(layer, factor):
    dims = Dims(heads=2, head_dim=4, layer=layer)
    mechanism = LightningAttention(dims, causal=True, layers=4).double()
    q, k, v, gate = torch.zeros(4, 1, 2, 9, 4).double()
    k[:, :, 0, 0] = v[:, :, 0, 0] = 1
    _, state = mechanism.step(q, k, v, gate)
    rates = factor * torch.tensor([1 / 16, 1 / 256]).double()
    expected = (-8 * rates).exp() * F.silu(torch.ones(2).double()) ** 2
    assert_close(state.S[0, :, 0, 0], expected, rtol=2e-5, atol=0)


def test_lightning_refuses_fewer_layers_than_there_are():
    with pytest.raises(ValueError, match="'lightning' is built for layer 2, counted from 0, of layers=2"):
        LightningAttention(Dims(heads=2, head_dim=4, layer=2), causal=True, layers=2)


def test_ssd_is_the_dense_product_of_its_dual_form():
    mechanism = make(SsdAttention)
    inputs = sequence(mechanism, 40)
    C, B, x, dt, z = inputs.values()
    C, B, x = F.silu(C), F.silu(B), F.silu(x)
    dt = F.softplus(dt + mechanism.b[:, None, None])
    a = (-mechanism.log_A.exp()[:, None, None] * dt).cumsum(2)
    L = (a - a.mT).exp().tril()
    y = (L * (C @ B.mT) * dt.mT) @ x + mechanism.D[:, None, None] * x
    assert_close(mechanism(**inputs), normed(y * F.silu(z)))


def test_a_step_of_no_time_passes_ssd_by():
    mechanism = make(SsdAttention)
    inputs = sequence(mechanism, 40)
    inputs["dt"][:, :, 10:20] = SHUT
    keep = torch.arange(40)[(torch.arange(40) < 10) | (torch.arange(40) >= 20)]
    without = mechanism(**{name: x[:, :, keep] for name, x in inputs.items()})
    assert_close(mechanism(**inputs)[:, :, keep], without)


# the delta rule


def test_keys_at_right_angles_recall_their_values_exactly():
    k = torch.linalg.qr(normal(1, 2, 8, 8))[0]
    v = normal(1, 2, 8, 4, seed=1)
    _, state = delta(k, k, v, torch.ones(1, 2, 8, 1).double(), torch.zeros(1, 1, 8, 1).double())
    assert_close(k @ state, v)


def test_a_key_recalls_its_last_value_where_linear_attention_recalls_the_sum():
    keys = F.normalize(normal(1, 1, 3, 8), dim=-1)
    k = keys[:, :, [0, 1, 0, 2, 0]]
    v, none = normal(1, 1, 5, 4, seed=1), torch.zeros(1, 1, 5, 1).double()
    overwritten, _ = delta(k, k, v, none + 1, none)
    assert_close(overwritten, v)
    added, _ = decayed(k, torch.where(torch.arange(5)[:, None] % 2 == 0, k, 0), v, none)
    assert_close(added[:, :, 4], v[:, :, [0, 2, 4]].sum(2))


def test_delta_writes_the_swish_of_values_or_values_as_they_come():
    swish, plain = make(DeltaAttention), make(DeltaAttention, swish_values=False)
    inputs = sequence(plain, 40)
    assert_close(swish(**inputs), plain(**{**inputs, "v": F.silu(inputs["v"])}))


def test_a_rate_of_zero_writes_nothing():
    mechanism = make(DeltaAttention)
    inputs = sequence(mechanism, 40)
    written = mechanism(**inputs)
    inputs["beta"][:, :, 10:20], inputs["v"][:, :, 10:20] = SHUT, 1e6
    keep = torch.arange(40)[(torch.arange(40) < 10) | (torch.arange(40) >= 20)]
    without = mechanism(**{name: x[:, :, keep] for name, x in inputs.items()})
    assert_close(mechanism(**inputs)[:, :, keep], without)
    assert (written[:, :, 20:] - without[:, :, 10:]).abs().max() > 1e-3


# numbers


@pytest.mark.parametrize("cls", ALL)
def test_extreme_gates_over_thousands_of_tokens_stay_exact(cls):
    mechanism = make(cls)
    inputs = sequence(mechanism, 4096, batch=1)
    for name in {"forget", "alpha", "beta", "dt", "gate"} & inputs.keys():
        inputs[name] = inputs[name] * 10.0 ** normal(*inputs[name].shape, seed=5).mul(2).clamp(max=4)
    inputs = {name: x.float() for name, x in inputs.items()}  # both see the same numbers
    exact = mechanism(**{name: x.double() for name, x in inputs.items()})
    single = {name: x.requires_grad_() for name, x in inputs.items()}
    out = mechanism.float()(**single)
    assert ((out - exact).norm() / exact.norm()).item() < 1e-4
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), [*single.values()]))


@pytest.mark.parametrize("rule", ["one decay", "decay by channel", "delta", "delta by channel"])
def test_a_slow_decay_after_a_fast_one_is_not_lost_by_rounding(rule):
    q, k, v = (normal(1, 1, 64, 4, seed=seed) for seed in range(3))
    k = F.normalize(k, dim=-1)
    log_decay = torch.full((1, 1, 64, 4 if "by channel" in rule else 1), -0.01).double()
    log_decay[:, :, 8:40:8] = -1e6
    core, inputs = decayed, [q, k, v, log_decay]
    if "delta" in rule:
        core, inputs = delta, [q, k, v, torch.full((1, 1, 64, 1), 0.5).double(), log_decay]
    exact, _ = core(*inputs)
    single, _ = core(*[x.float() for x in inputs])
    assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cls", ALL)
def test_training_keeps_no_matrix_for_each_token(cls, causal):
    d, length = 64, 128
    mechanism = cls(Dims(heads=1, head_dim=d), causal=causal)
    inputs = {
        name: normal(1, 1, length, width, dtype=torch.float32).requires_grad_()
        for name, width in mechanism.projections().items()
    }
    a_matrix_each = 4 * length * d * d  # bytes
    assert peak_bytes(mechanism, **inputs) < 0.9 * a_matrix_each < peak_bytes(mechanism.definition, **inputs)
