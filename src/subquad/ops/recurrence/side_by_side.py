"""The states before all chunks at once: more work, in operations that hardly grow with the length."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.recurrence.chain import ByChunk, LogWhole, Matrix, States, ValueRows
from subquad.ops.shared.fading import fading_states as faded
from subquad.ops.shared.segments import times

__all__ = ["corrected", "faded"]

Maps = Float[Tensor, "b h n d d"]


def corrected(
    readers: ByChunk,
    writers: ByChunk,
    values: ValueRows,
    written: States | None,
    log_whole: LogWhole,
    state: Matrix,
) -> tuple[States, Matrix]:
    whole = log_whole.exp()[..., None] * torch.eye(state.shape[2], dtype=state.dtype, device=state.device)
    maps = torch.sub(whole, writers.mT @ readers)
    added = writers.mT @ values if written is None else times(writers.mT, values, written)
    states = mapped(maps, added, state)
    return states, added[:, :, -1] + maps[:, :, -1] @ states[:, :, -1]


def mapped(maps: Maps, added: States, state: Matrix) -> States:
    """S_n before each map, S_(n+1) = maps_n S_n + added_n; two maps in turn are one, which leaves half."""
    length = maps.shape[2]
    if length == 1:
        return state[:, :, None]
    if length % 2:
        maps, added = (F.pad(x, (0, 0, 0, 0, 0, 1)) for x in (maps, added))
    (first, second), (a, b) = ((x[:, :, ::2], x[:, :, 1::2]) for x in (maps, added))
    even = mapped(second @ first, times(second, a, b), state)
    return torch.stack([even, times(first, even, a)], 3).flatten(2, 3)[:, :, :length]
