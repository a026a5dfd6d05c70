"""That what a mechanism cannot do is an error, and never silently something else."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from subquad.mechanism import Mechanism
from subquad.testing.cases import DIMS, LENGTH, each_form, forms, make, positional, random_inputs


def check_signature(cls: type[Mechanism]) -> None:
    """Options are keyword-only scalars with defaults; each form takes the inputs that are promised."""
    for option in list(inspect.signature(cls).parameters.values())[1:]:
        assert option.kind is option.KEYWORD_ONLY, f"option {option.name!r} must be keyword-only"
        if option.name != "causal":
            scalar = isinstance(option.default, (bool, int, float, str))
            assert scalar, f"option {option.name!r} needs a scalar default, not {option.default!r}"
    for mechanism in each_form(cls):
        wanted = list(mechanism.projections())
        assert wanted[:1] == ["q"], f"projections must begin with 'q', not {wanted}"
        methods: list[Callable[..., Any]] = [mechanism.forward, mechanism.definition]
        if cls.traits.state is not None:
            methods.append(mechanism.step)
        for method in methods:
            taken = positional(method)
            assert taken == wanted, f"{method.__name__} takes {taken}, projections promise {wanted}"


def check_refuses_what_it_lacks(cls: type[Mechanism]) -> None:
    """A form that the traits rule out is a ValueError that names the mechanism."""
    for causal in {True, False} - set(forms(cls)):
        refused(cls, f"built with causal={causal}", lambda c=causal: cls(DIMS, causal=c, **cls.traits.tiny))
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism)
        if cls.traits.state is None or not mechanism.causal:
            refused(cls, "streamed", lambda m=mechanism, x=inputs: m.step(**x))
        if mechanism.causal or not cls.traits.cross:
            fewer = random_inputs(mechanism, queries=5)
            refused(cls, "given 5 queries and 24 keys", lambda m=mechanism, x=fewer: m(**x))


def check_refuses_bad_masks(cls: type[Mechanism]) -> None:
    """A mask that is not boolean, or not of shape batch by keys, is a ValueError."""
    mechanism = make(cls, causal=forms(cls)[0])
    inputs = random_inputs(mechanism)
    for bad in (torch.ones(2, LENGTH), torch.ones(2, LENGTH + 1, dtype=torch.bool)):
        refused(
            cls, f"given a mask {bad.dtype} {tuple(bad.shape)}", lambda b=bad: mechanism(**inputs, valid=b)
        )


def check_refuses_inputs_that_do_not_go_together(cls: type[Mechanism]) -> None:
    """Keys or values of other heads, another batch, or another number than the rest are a ValueError."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism)
        calls: list[Callable[..., Any]] = [mechanism.forward]
        if cls.traits.state is not None and mechanism.causal:
            calls.append(mechanism.step)
        for name in [name for name in inputs if name != "q"]:
            x = inputs[name]
            for other in (x[:1], x[:, :1], x[:, :, :13]):
                what = f"given {name} of {tuple(other.shape)} among inputs of {tuple(x.shape)}"
                for call in calls:
                    refused(cls, what, partial(call, **{**inputs, name: other}))


def refused(cls: type[Mechanism], what: str, attempt: Callable[[], Any]) -> None:
    try:
        attempt()
    except ValueError as error:
        if not str(error):
            raise AssertionError(f"{what}: the error says nothing") from error
        return
    except Exception as error:  # jaxtyping's own error, or a crash deep inside
        if type(error).__module__.startswith("jaxtyping"):
            return
        raise AssertionError(f"{what}: {type(error).__name__} instead of ValueError: {error}") from error
    raise AssertionError(f"{cls.traits.name!r} was {what} and did not refuse")
