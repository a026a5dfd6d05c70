"""Custom operators run as their PyTorch bodies, for counters, which see an operator as one call."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from subquad.torch_internals import TorchDispatchMode, op_body_of


@contextmanager
def decompose_custom_ops() -> Iterator[None]:
    """Within, operators made with `torch.library.custom_op` run as their Python bodies, in PyTorch.

    Enter the counting mode before this one.
    """
    before = os.environ.get("SUBQUAD_NATIVE")
    os.environ["SUBQUAD_NATIVE"] = "0"
    try:
        with _DecomposeMode():
            yield
    finally:
        if before is None:
            del os.environ["SUBQUAD_NATIVE"]
        else:
            os.environ["SUBQUAD_NATIVE"] = before


class _DecomposeMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        body = op_body_of(func)
        if body is None:
            return func(*args, **(kwargs or {}))
        with self:
            return body(*args, **(kwargs or {}))
