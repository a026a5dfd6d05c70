"""Custom operators run as their PyTorch bodies, for counters, which see an operator as one call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from subquad.ops import backends
from subquad.torch_internals import TorchDispatchMode, op_body_of


@contextmanager
def decompose_custom_ops() -> Iterator[None]:
    """Within, operators made with `torch.library.custom_op` run as their bodies on the reference backend.

    Enter the counting mode before this one.
    """
    with backends.using("reference"), _DecomposeMode():
        yield


class _DecomposeMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        body = op_body_of(func)
        if body is None:
            return func(*args, **(kwargs or {}))
        with self:
            return body(*args, **(kwargs or {}))
