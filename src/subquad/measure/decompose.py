"""Custom operators run as their PyTorch bodies, for counters, which see an operator as one call."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from subquad.ops import backends
from subquad.torch_internals import TorchDispatchMode, op_body_of


@contextmanager
def decompose_custom_ops(*, backend: str | None = "reference") -> Iterator[None]:
    """Within, operators made with `torch.library.custom_op` run as their bodies.

    Enter the counting mode before this one.

    backend: which one counts. None: the one that would serve.
    """
    with backends.using(backend) if backend else nullcontext(), _DecomposeMode():
        yield


class _DecomposeMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        body = op_body_of(func)
        if body is None:
            return func(*args, **(kwargs or {}))
        with self:
            return body(*args, **(kwargs or {}))
