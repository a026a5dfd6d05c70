"""Which backend serves a recurrence where, and why not another: by versions, cards, dtypes and widths."""

import pytest
import torch

from subquad.ops.backends import using
from subquad.ops.native import library
from subquad.ops.recurrence import NOTHING, RecurrenceCall, cpu, decayed_product, fla, triton
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.ops.triton import availability


@pytest.fixture
def unsound(monkeypatch):
    """Why flash-linear-attention is not taken with a version of Triton, on a generation of cards."""

    def verdict(version, major, *, gradients):
        monkeypatch.setattr(availability, "version", lambda: version)
        fla.unsound.cache_clear()
        return fla.unsound(major, gradients=gradients)

    yield verdict
    fla.unsound.cache_clear()


@pytest.mark.parametrize("version", [(3, 4, 0), (3, 6, 0), (3, 7, 0)])
def test_its_gradients_are_not_taken_where_triton_compiles_them_wrongly(version, unsound):
    reason = unsound(version, 9, gradients=True)
    assert "Hopper" in reason
    assert "pip install -U triton" in reason
    assert unsound(version, 9, gradients=False) is None
    assert unsound(version, 8, gradients=True) is None


def test_where_triton_was_mended_its_gradients_are_taken(unsound):
    assert unsound((3, 7, 1), 9, gradients=True) is None
    assert unsound((3, 3, 1), 9, gradients=True) is None


def test_on_cards_of_which_nothing_is_known_it_is_not_taken(unsound):
    assert "capability 10" in unsound((3, 8, 0), 10, gradients=False)


def test_without_triton_the_remedy_is_named(unsound):
    assert "pip install" in unsound("Triton cannot be loaded: pip install it", 8, gradients=False)


def call(dtype=torch.float32, width=8, n=4, *, delta=False, channels=1, needs_grad=False):
    q, state = torch.zeros(1, 1, n, width, dtype=dtype), torch.zeros(1, 1, width, width)
    log_decay, beta = torch.zeros(1, 1, n, channels), torch.zeros(1, 1, n, 1) if delta else None
    return RecurrenceCall(RecurrenceInputs(q, q, q, log_decay, beta), state, NOTHING, needs_grad)


def test_kernels_do_not_serve_a_cpu():
    assert "CUDA" in str(triton.refuses(call()))


@pytest.fixture
def on_a_card(monkeypatch):
    monkeypatch.setattr(triton, "why_not", lambda *inputs: None)


@pytest.mark.parametrize(
    ("refused", "taken"),
    [
        ({"dtype": torch.bfloat16, "width": 129}, {"dtype": torch.bfloat16, "width": 128}),
        ({"width": 65}, {"width": 64}),
        ({"width": 65, "delta": True}, {"width": 64, "delta": True}),
        ({"n": 0}, {"n": 1}),
        ({"delta": True, "channels": 8}, {"channels": 8}),
    ],
)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_kernels_refuse_what_they_do_not_hold(refused, taken, needs_grad, on_a_card):
    assert triton.refuses(call(**refused, needs_grad=needs_grad)) is not None
    assert triton.refuses(call(**taken, needs_grad=needs_grad)) is None


def test_a_refusal_of_wide_heads_names_what_would_be_served(on_a_card):
    assert "take half precision or more, narrower heads" in str(triton.refuses(call(width=65)))
    assert "half precision" not in str(triton.refuses(call(width=129)))


@pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))
def test_no_kernel_of_the_cpu_has_the_delta_rule_with_a_decay_for_each_channel():
    assert "one decay for all channels" in str(cpu.refuses(call(delta=True, channels=8)))
    assert cpu.refuses(call(delta=True)) is None
    assert cpu.refuses(call(channels=8)) is None


def test_a_call_of_no_token_is_served_whichever_backend_is_asked_for():
    nothing, state = torch.zeros(1, 1, 0, 4), torch.ones(1, 1, 4, 4)
    with using("triton"):
        out, after = decayed_product(nothing, nothing, nothing, nothing[..., :1], state=state)
    assert out.shape == nothing.shape
    assert torch.equal(after, state)
