"""Looking into operators that Python defines, where torch's counters see one call and no more."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from subquad.torch_internals import TorchDispatchMode, op_body_of


@contextmanager
def opened() -> Iterator[None]:
    """Within, operators made with `torch.library.custom_op` run as what their bodies say, in PyTorch's terms.

    What counts operators must be entered before. Compiled kernels are left aside for the while.
    """
    before = os.environ.get("SUBQUAD_NATIVE")
    os.environ["SUBQUAD_NATIVE"] = "0"
    try:
        with _Bodies():
            yield
    finally:
        if before is None:
            del os.environ["SUBQUAD_NATIVE"]
        else:
            os.environ["SUBQUAD_NATIVE"] = before


class _Bodies(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        body = op_body_of(func)
        if body is None:
            return func(*args, **(kwargs or {}))
        with self:
            return body(*args, **(kwargs or {}))
