"""That a step can write the new state over the old one, and refuses to where gradients may need that."""

from functools import partial

import torch
from torch import Tensor

from subquad.mechanism import Mechanism, State
from subquad.testing.mechanism.cases import (
    CHUNKS,
    LENGTH,
    assert_close,
    make,
    map_state,
    padding_masks,
    random_inputs,
    stream,
    tensors,
)
from subquad.testing.mechanism.rejections import assert_rejects


@torch.no_grad()
def check_steps_in_place(cls: type[Mechanism]) -> None:
    """Steps in place give the numbers of others, and the state's tensors stay where they are."""
    mechanism = make(cls, causal=True).eval()
    inputs, further = random_inputs(mechanism), random_inputs(mechanism, seed=2)
    for where, valid in {"none": None, **padding_masks()}.items():
        for chunks in CHUNKS:
            label = f"padding {where}, chunks of {chunks}: ".__add__
            expected, after = stream(mechanism, inputs, chunks, valid=valid)
            state = empty_state(mechanism, room=LENGTH)
            places = [x.data_ptr() for x in tensors(state)]
            out, last = stream(mechanism, inputs, chunks, valid=valid, state=state, in_place=True)
            assert last is state, label("the state that is returned is not the one that was given")
            assert [x.data_ptr() for x in tensors(state)] == places, label("a tensor of the state has moved")
            assert_close(real(out, valid), real(expected, valid), msg=label)
            outputs = (mechanism.step(**further, state=x)[0] for x in (state, after))
            assert_close(*outputs, msg=lambda text, label=label: label(f"after the last step: {text}"))


def check_rejects_steps_in_place(cls: type[Mechanism]) -> None:
    """No state is written in place that gradients may flow through, nor one that has no room."""
    mechanism = make(cls, causal=True)
    step = partial(mechanism.step, **random_inputs(mechanism), in_place=True)
    state = empty_state(mechanism, room=LENGTH)
    assert_rejects(cls, "given a state to write in place with gradients", partial(step, state=state))
    with torch.no_grad():
        learnt = map_state(lambda x: x.clone().requires_grad_(x.is_floating_point()), state)
        assert_rejects(cls, "given a state with gradients to write in place", partial(step, state=learnt))
        if cls.traits.state == "growing":
            step(state=state)
            assert_rejects(cls, "given a state without room to write in place", partial(step, state=state))


@torch.no_grad()
def empty_state(mechanism: Mechanism, *, room: int) -> State:
    """The state after no token, with room for some."""
    _, state = mechanism.step(**random_inputs(mechanism, length=0))
    return mechanism.reserve(state, room)


def real(out: Tensor, valid: Tensor | None) -> Tensor:
    return out if valid is None else out.masked_fill(~valid[:, None, :, None], 0)
