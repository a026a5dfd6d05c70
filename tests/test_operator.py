"""Operators bypass the dispatcher only where no tracer or mode needs it."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from subquad.ops.shared.operator import call_op
from subquad.ops.window_attention import window_attention, window_op


class Seen(TorchDispatchMode):
    """The names of the operators that are called within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def attend(*, requires_grad: bool = False) -> torch.Tensor:
    q, k, v = torch.randn(3, 1, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    q.requires_grad_(requires_grad)
    return window_attention(q, k, v, left=3, right=1, lengths=None)[0]


def test_the_dispatcher_never_hears_of_an_operator(monkeypatch):
    def heard(*inputs: Any) -> Any:
        raise AssertionError("the dispatcher was asked")

    monkeypatch.setattr(type(window_op), "__call__", heard)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            attend()
    attend(requires_grad=True).sum().backward()
    with torch.no_grad(), Seen(), pytest.raises(AssertionError, match="the dispatcher was asked"):
        attend()


def test_a_profile_names_the_operator_whose_gradients_are_asked_for():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend(requires_grad=True)
    assert "subquad::window" in {event.name for event in profile.events() or ()}


def test_a_mode_sees_the_operator_as_one():
    with torch.no_grad(), Seen() as seen:
        attend()
    assert "subquad::window" in seen.names


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and says so
def test_a_trace_holds_the_operator():
    def attended(x: torch.Tensor) -> torch.Tensor:
        return call_op(window_op, x, x, x, None, 3, 1)[0]

    with torch.no_grad():
        traced: Any = torch.jit.trace(attended, torch.randn(1, 2, 9, 4))
        x = torch.randn(1, 2, 9, 4)
        assert torch.equal(traced(x), attended(x))


@pytest.mark.parametrize("gradients", [False, True])
def test_both_ways_give_the_same_numbers(gradients):
    with torch.set_grad_enabled(gradients):
        found = attend()
    assert torch.equal(found, attend(requires_grad=True))
