"""Whether the host may look at numbers.

On a CPU a look costs nothing and saves work: no second try where no row was lost, nothing behind a row's end.
With CUDA the host would wait there until all that it has asked for is done, and no graph of the device's work
could be captured. So whoever would look asks here, and has another way, which `meta` tensors, that have no
numbers, take too. Devices of other kinds may lack operators that it needs, and are looked at.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from subquad.ops.shared.operator import PLAIN
from subquad.torch_internals import assert_async, current_dispatch_mode, is_wrapped, jit_tracing

_never = ContextVar("never", default=False)


def may_wait(x: Tensor) -> bool:
    """Whether numbers on the device of `x` may be looked at."""
    if x.is_cuda or x.is_meta:
        return False
    return torch.compiler.is_compiling() or not _never.get()  # which graphs cannot hold


@contextmanager
def without_waiting() -> Iterator[None]:
    """Within, in this thread, a CPU is treated as CUDA is: for tests of that other way."""
    token = _never.set(True)
    try:
        yield
    finally:
        _never.reset(token)


def require(holds: Tensor, otherwise: str) -> None:
    """Raise `ValueError(otherwise)` unless it holds, a boolean of no axes.

    Where it may not be looked at, or there is nothing to look at yet (a traced graph), the device is told to
    ask, and the answer no is an error there.
    """
    if must_not_look(holds):
        assert_async(holds, otherwise)
    elif not holds:
        raise ValueError(otherwise)


def require_at_most(bound: int, counts: Tensor, otherwise: str) -> None:
    """Raise `ValueError(otherwise)` for any greater count, which takes the place of `{}`, or `more` does."""
    if not counts.numel():
        return
    most = counts.max()
    if must_not_look(most):
        assert_async(most <= bound, otherwise.format("more"))
    elif (count := int(most)) > bound:
        raise ValueError(otherwise.format(count))


def must_not_look(x: Tensor) -> bool:
    return is_traced(x) or not may_wait(x)


def is_traced(x: Tensor) -> bool:
    """Whether `x` stands for numbers that are not there to be looked at."""
    return (
        torch.compiler.is_compiling()
        or jit_tracing()
        or current_dispatch_mode() is not None
        or type(x) not in PLAIN
        or is_wrapped(x)
    )
