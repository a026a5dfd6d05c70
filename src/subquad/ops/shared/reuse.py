"""What is made once and used again: layouts of patterns, orders of real tokens.

    once_a_process  for the process: what follows from plain values
    once_a_pass     for one pass through a model: what follows from tensors, such as a mask

The numbers of a tensor change where nobody is told: a CUDA graph is replayed with another mask, and so must
hold all that follows from it. Within one pass they stay as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from subquad.torch_internals import fakes_tensors, transformed, version

KNOWN = 64  # results of a function that are kept, such as those of a network's layers

R = TypeVar("R")

_made: ContextVar[dict[Any, Any] | None] = ContextVar("made", default=None)


def once_a_process(function: Callable[..., R]) -> Callable[..., R]:
    """A function of plain values, by place, that is called once for the latest of them."""

    @lru_cache(KNOWN)
    def known(*inputs: Any) -> R:
        if capturing():
            raise NotYetMade  # which `lru_cache` does not keep
        with torch.inference_mode(False):  # tensors made in inference could not be kept for a backward pass
            return function(*inputs)

    @wraps(function)
    def call(*inputs: Any) -> R:
        if not tensors_last():
            return function(*inputs)
        try:
            return known(*inputs)
        except NotYetMade:
            return function(*inputs)

    return call


def once_a_pass(function: Callable[..., R]) -> Callable[..., R]:
    """A function of tensors and more, by place, that is called once for the same ones within `one_pass`."""

    @wraps(function)
    def call(*inputs: Any) -> R:
        if not tensors_last() or (made := _made.get()) is None:
            return function(*inputs)
        key = function, *map(identity, inputs)
        if key not in made:
            made[key] = function(*inputs), inputs  # whose identities nothing else can have by now
        return made[key][0]

    return call


def one_pass() -> AbstractContextManager[None]:
    """Within, in this thread, what follows from a tensor is made once."""
    return nullcontext() if torch.compiler.is_compiling() else _one_pass()


@contextmanager
def _one_pass() -> Iterator[None]:
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


class NotYetMade(Exception):
    """Raised in a CUDA graph's capture, whose tensors have numbers only when it is replayed."""


def capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def tensors_last() -> bool:
    """Whether tensors made now are plain ones: those of a transform, a tracer or a fake mode end with it."""
    return not (torch.compiler.is_compiling() or transformed() or fakes_tensors())


def identity(x: Any) -> Any:
    return (id(x), version(x)) if isinstance(x, Tensor) else x
