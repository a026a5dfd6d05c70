"""How many operations a device is asked for. On a GPU each is a launch, which costs the host microseconds.

They are counted on PyTorch's `meta` device, whose tensors have no numbers, so that no GPU is needed. What
serves a call there is what serves CUDA without Triton.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from subquad.measure.decompose import decompose_custom_ops
from subquad.torch_internals import TorchDispatchMode

VIEWS = {
    *("alias", "as_strided", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand"),
    *(
        "lift_fresh",
        "new_empty",
        "new_empty_strided",
        "permute",
        "select",
        "slice",
        "split",
        "squeeze",
        "t",
        "transpose",
    ),
    *("unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias"),
}


def count_launches(run: Callable[[], object]) -> int:
    """Operations that compute, as `run` asks for them; of operators made of others the parts count."""
    with Launches() as seen, decompose_custom_ops(backend=None):
        run()
    return seen.counts.total()


class Launches(TorchDispatchMode):
    """Counts operations by name, views and allocations apart."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "aten":
            return func(*args, **(kwargs or {}))
        with self:
            if (out := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                return out
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))
