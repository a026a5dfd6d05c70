"""What the backends called `parallel` share, which serve where nobody may look at numbers (`waiting.py`).

They compute everything side by side, and what does not count is hidden by masks, so that the number of calls
grows with the length only where memory asks for several turns.
"""

from collections.abc import Iterator

from torch import Tensor

from subquad.ops.backends import wanted
from subquad.ops.shared.waiting import may_wait

MAX_NUMBERS = 2**27  # of scores, and of keys and values beside them, in memory at once


def why_not_parallel(x: Tensor) -> str | None:
    """Why such a backend does not serve a call with `x`; None: it does."""
    if may_wait(x) and wanted() != "parallel":
        return f"loops in cache are faster on {x.device.type}: using('parallel') takes it nevertheless"
    return None


def turns(count: int, numbers: int) -> Iterator[slice]:
    """All of `count` things with so many `numbers` each, as many at once as memory allows, at least one."""
    return groups(count, numbers, most=MAX_NUMBERS)


def groups(count: int, numbers: int, *, most: int) -> Iterator[slice]:
    """All of `count` things with so many `numbers` each, at `most` so many at once, at least one thing's."""
    step = max(1, most // max(1, numbers))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
