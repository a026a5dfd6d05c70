"""Decoding, beyond what the contract says of steps: allocations, room in caches, gradients of states."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from subquad.measure.memory import peak_bytes
from subquad.mechanism import Dims, Mechanism, Traits
from subquad.ops.backends import Refused, backend, using
from subquad.ops.native import library
from subquad.ops.shared.waiting import without_waiting
from subquad.registry import build, find
from subquad.testing.mechanism.cases import precision, random_inputs
from subquad.testing.mechanism.causality import check_stream_equals_sequence
from subquad.testing.mechanism.in_place import check_steps_in_place

DIMS = Dims(heads=2, head_dim=64, max_len=4096)


def token(mechanism, seed=1, **options):
    return random_inputs(mechanism, length=1, seed=seed, dtype=torch.float32, **options)


def decoding(name, *, room=0, **options):
    """A mechanism in float32, and the state after no token."""
    mechanism = build(name, DIMS, causal=True, **options).eval()
    with torch.no_grad():
        nothing = {key: x[:, :, :0] for key, x in token(mechanism).items()}
        return mechanism, mechanism.reserve(mechanism.step(**nothing)[1], room)


@pytest.mark.parametrize(
    ("name", "options"),
    [("softmax", {"room": 4096}), ("local", {"width": 4095}), ("local", {"width": 1365, "dilation": 3})],
)
@torch.no_grad()
def test_a_step_in_place_copies_no_keys(name, options):
    mechanism, state = decoding(name, **options)
    keys = state.k.nbytes
    mechanism.step(**token(mechanism), state=state)  # learns the layout of states
    assert peak_bytes(lambda: mechanism.step(**token(mechanism), state=state, in_place=True)) < keys / 2
    assert peak_bytes(lambda: mechanism.step(**token(mechanism), state=state)) > keys


@torch.no_grad()
def test_padding_takes_no_room():
    mechanism, state = decoding("softmax", room=3)
    lengths, steps = torch.tensor([3, 2]), [token(mechanism, seed) for seed in range(5)]
    other = None
    for n, inputs in enumerate(steps):
        valid = (n < lengths)[:, None]
        out, _ = mechanism.step(**inputs, valid=valid, state=state, in_place=True)
        expected, other = mechanism.step(**inputs, valid=valid, state=other)
        assert_close(out, expected)
    assert state.count.tolist() == [3, 2]


@pytest.mark.parametrize("name", ["softmax", "sparse-transformer", "pattern"])
@torch.no_grad()
def test_a_cache_without_room_says_how_to_make_some(name):
    mechanism, state = decoding(name)
    with pytest.raises(ValueError, match=r"^a state has room for 0 tokens, not 1: `reserve` more$"):
        mechanism.step(**token(mechanism), state=state, in_place=True)


class Grows(Mechanism):
    """Its state grows, and it knows nothing of steps in place."""

    traits = Traits(name="grows", paper="", family="other", causal="strict", state="growing")

    def definition(self, *inputs, valid=None):
        return inputs[2]

    forward = definition

    def step(self, *inputs, valid=None, state=None, **named):
        return inputs[2], (inputs[2] if state is None else torch.cat([state[0], inputs[2]], 2),)


@torch.no_grad()
def test_what_grows_by_being_made_anew_is_not_written_in_place():
    mechanism = Grows(DIMS, causal=True)
    inputs = token(mechanism).values()
    _, state = mechanism.step(*inputs)
    with pytest.raises(ValueError, match="'grows' has no room to reserve"):
        mechanism.step(*inputs, state=state, in_place=True)


COMPILED = """
import torch
from torch.testing import assert_close
from subquad import Dims, build

for name in ("softmax", "local", "linear", "retention"):
    mechanism, other = build(name, Dims(heads=2, head_dim=8), causal=True).eval(), None
    step = torch.compile(mechanism.step, fullgraph=True, backend="aot_eager")

    def tokens(length):
        return {key: torch.randn(2, 2, length, width) for key, width in mechanism.projections().items()}

    with torch.no_grad():
        state = mechanism.reserve(mechanism.step(**tokens(0))[1], 3)
        places = [x.data_ptr() for x in state]
        for _ in range(3):
            inputs = tokens(1)
            out, _ = step(**inputs, state=state, in_place=True)
            expected, other = mechanism.step(**inputs, state=other)
            assert_close(out, expected)
        assert [x.data_ptr() for x in state] == places
"""


@pytest.mark.slow
def test_a_compiled_step_writes_in_place():
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


@torch.no_grad()
def test_without_a_state_a_step_in_place_makes_the_first():
    mechanism, _ = decoding("linear")
    _, state = mechanism.step(**token(mechanism), in_place=True)
    assert_close(state, mechanism.step(**token(mechanism))[1])


@pytest.mark.parametrize("name", ["linear", "performer", "retention", "gated-linear", "gated-delta"])
def test_kernels_write_in_place(name):
    with precision(torch.float32):
        check_steps_in_place(find(name))


@pytest.mark.skipif(library.load_library()[0] is None, reason=library.load_library()[1])
@pytest.mark.parametrize("name", ["linear", "performer", "retention", "gated-linear", "gated-delta"])
@torch.no_grad()
def test_kernels_make_no_new_state(name):
    mechanism, state = decoding(name)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("subquad.mechanism.overwrite", lambda state, after: after)
        _, after = mechanism.step(**token(mechanism), state=state, in_place=True)
    assert after[0] is state[0]


@pytest.mark.parametrize("name", ["linear", "performer", "retention", "gated-delta", "softmax", "local"])
def test_gradients_through_states_are_right_where_nobody_looks(name):
    with without_waiting():
        check_stream_equals_sequence(find(name))


def test_which_backend_serves_a_step_depends_on_gradients():
    mechanism, _ = decoding("linear")
    assert str(backend(mechanism.step, **token(mechanism, requires_grad=True))).startswith(
        "linear_attention: reference\n  cpu refuses: it has no 'step_with_gradients'"
    )
    with torch.no_grad(), using("reference"):
        assert backend(mechanism.step, **token(mechanism))[0].backend == "reference"
    with using("cpu"), pytest.raises(Refused, match="it has no 'step_with_gradients'"):
        mechanism.step(**token(mechanism, requires_grad=True))
