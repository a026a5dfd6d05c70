"""The states before chunks, one after the other: the least work, in operations that grow with the length."""

import torch

from subquad.ops.recurrence.chain import ByChunk, LogWhole, Matrix, States, ValueRows


def faded(written: States, log_whole: LogWhole, state: Matrix) -> tuple[States, Matrix]:
    whole, states = log_whole.exp()[..., None], []
    for n in range(written.shape[2]):
        states.append(state)
        state = torch.addcmul(written[:, :, n], whole[:, :, n], state)
    return torch.stack(states, 2), state


def corrected(
    readers: ByChunk,
    writers: ByChunk,
    values: ValueRows,
    written: States | None,
    log_whole: LogWhole,
    state: Matrix,
) -> tuple[States, Matrix]:
    whole, states = log_whole.exp()[..., None], []
    for n in range(values.shape[2]):
        states.append(state)
        missing = values[:, :, n] - readers[:, :, n] @ state
        state = torch.addcmul(writers[:, :, n].mT @ missing, whole[:, :, n], state)
        if written is not None:
            state += written[:, :, n]
    return torch.stack(states, 2), state
