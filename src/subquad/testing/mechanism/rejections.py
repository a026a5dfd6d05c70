"""That what a mechanism cannot do is a ValueError, and never silently something else."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import (
    LENGTH,
    dims_for,
    each_form,
    forms,
    make,
    map_state,
    positional,
    random_inputs,
    tensors,
)


def check_signature(cls: type[Mechanism]) -> None:
    """Options are keyword-only scalars with defaults; each form takes the inputs that are promised."""
    for option in list(inspect.signature(cls).parameters.values())[1:]:
        assert option.kind is option.KEYWORD_ONLY, f"option {option.name!r} must be keyword-only"
        if option.name != "causal":
            scalar = isinstance(option.default, (bool, int, float, str))
            assert scalar, f"option {option.name!r} needs a scalar default, not {option.default!r}"
    for mechanism in each_form(cls):
        names = list(mechanism.projections())
        assert names[:1] == ["q"], f"projections must begin with 'q', not {names}"
        methods: list[Callable[..., Any]] = [mechanism.forward, mechanism.definition]
        if cls.traits.state is not None:
            methods.append(mechanism.step)
        for method in methods:
            taken = positional(method)
            assert taken == names, f"{method.__name__} takes {taken}, projections promise {names}"


def check_rejects_unsupported_forms(cls: type[Mechanism]) -> None:
    """A form that the traits rule out is a ValueError that names the mechanism."""
    for causal in {True, False} - set(forms(cls)):
        build = partial(cls, dims_for(cls), causal=causal, **cls.traits.tiny)
        assert_rejects(cls, f"built with causal={causal}", build)
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism)
        if cls.traits.state is None or not mechanism.causal:
            assert_rejects(cls, "streamed", lambda m=mechanism, x=inputs: m.step(**x))
        if mechanism.causal or not cls.traits.cross:
            fewer = random_inputs(mechanism, queries=5)
            for call in forms_of(mechanism):
                assert_rejects(cls, "given 5 queries and 24 keys", partial(call, **fewer))


def check_rejects_bad_masks(cls: type[Mechanism]) -> None:
    """A mask that is not boolean, or not of shape batch by keys, is a ValueError in each form."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism)
        for bad in (torch.ones(2, LENGTH), *(torch.ones(2, n, dtype=torch.bool) for n in (1, LENGTH + 1))):
            what = f"given a mask {bad.dtype} {tuple(bad.shape)}"
            for call in forms_of(mechanism):
                assert_rejects(cls, what, partial(call, **inputs, valid=bad))


def check_rejects_mismatched_inputs(cls: type[Mechanism]) -> None:
    """Keys or values of another batch, heads, number or dtype than the rest are a ValueError in each form."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism)
        for name in [name for name in inputs if name != "q"]:
            x = inputs[name]
            for other in (x[:1], x[:, :1], x[:, :, :13], x.half()):
                what = f"given {name} {tuple(other.shape)} {other.dtype} among {tuple(x.shape)} {x.dtype}"
                for call in forms_of(mechanism):
                    assert_rejects(cls, what, partial(call, **{**inputs, name: other}))


def check_rejects_other_dims(cls: type[Mechanism]) -> None:
    """Tensors in another layout, or of other heads or width than it was built for, are a ValueError."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "inputs (batch, tokens, heads, width)": lambda x: x.transpose(1, 2),
        "inputs (tokens, batch, heads, width)": lambda x: x.permute(2, 0, 1, 3),
        "inputs without batch": lambda x: x[0],
        "inputs without heads": lambda x: x[:, 0],
        "one head": lambda x: x[:, :1],
        "twice the heads": lambda x: torch.cat([x, x], 1),
        "twice the width": lambda x: torch.cat([x, x], 3),
        "no width": lambda x: x[..., :0],
        "whole numbers": lambda x: x.long(),
    }
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism, batch=mechanism.dims.heads + 1)  # else rows would look like heads
        for what, change in changes.items():
            for call in forms_of(mechanism):
                assert_rejects(
                    cls, f"given {what}", partial(call, **{name: change(x) for name, x in inputs.items()})
                )
        for call in forms_of(mechanism):
            assert_rejects(cls, "given q alone", partial(call, inputs["q"]))
            assert_rejects(cls, "given an input too many", partial(call, *inputs.values(), inputs["q"]))


def check_rejects_foreign_states(cls: type[Mechanism]) -> None:
    """A state of other rows, another dtype or another mechanism is a ValueError."""
    mechanism = make(cls, causal=True)
    inputs = random_inputs(mechanism)
    _, state = mechanism.step(**inputs)
    dims = dims_for(cls)
    wider = make(cls, causal=True, dims=replace(dims, heads=2 * dims.heads))
    states = {
        "of one row": map_state(lambda x: x[:1], state),
        "of four rows": map_state(lambda x: torch.cat([x, x]), state),
        "in another dtype": map_state(Tensor.half, state),
        "cut short": tuple(state[:-1]),
        "of a mechanism with more heads": wider.step(**random_inputs(wider))[1],
        "that is a tensor": tensors(state)[0],
    }
    for what, other in states.items():
        assert_rejects(cls, f"given a state {what}", partial(mechanism.step, **inputs, state=other))


def forms_of(mechanism: Mechanism) -> list[Callable[..., Any]]:
    """The forms that the mechanism has."""
    streams = mechanism.traits.state is not None and mechanism.causal
    return [mechanism.definition, mechanism.forward] + [mechanism.step] * streams


def assert_rejects(cls: type[Mechanism], what: str, attempt: Callable[[], Any]) -> None:
    try:
        attempt()
    except ValueError as error:
        if not str(error):
            raise AssertionError(f"{what}: the error has no message") from error
        return
    except Exception as error:  # a crash deep inside
        raise AssertionError(f"{what}: {type(error).__name__} instead of ValueError: {error}") from error
    raise AssertionError(f"{cls.traits.name!r} was {what} and did not raise")
