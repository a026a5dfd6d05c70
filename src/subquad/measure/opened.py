"""Looking into operators that Python defines, where torch's counters see one call and no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from subquad.ops.backends import using


@contextmanager
def opened() -> Iterator[None]:
    """Within, operators made with `torch.library.custom_op` run as what their bodies say, in PyTorch's terms.

    What counts operators must be entered before. The reference serves every call.
    """
    with using("reference"), _Bodies():
        yield


class _Bodies(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        defined = OPDEFS.get(func._schema.name)
        if defined is None:
            return func(*args, **(kwargs or {}))
        with self:
            return defined._init_fn(*args, **(kwargs or {}))
