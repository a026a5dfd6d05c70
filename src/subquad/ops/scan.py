"""Running a chunk function over a sequence."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def scan(
    step: Callable[..., tuple[Tensor, Any]],
    *inputs: Float[Tensor, "b h t _"],
    valid: Bool[Tensor, "b t"] | None,
    state: Any,
    chunk: int,
) -> tuple[Float[Tensor, "b h t e"], Any]:
    """Feed `inputs` to `step(*inputs, valid=…, state=…)` in chunks of `chunk` tokens.

    Returns what the chunks gave, joined, and the last state. An empty sequence is one empty chunk.
    """
    length = inputs[0].shape[2]
    outputs = []
    for start in range(0, max(length, 1), chunk):
        here = slice(start, start + chunk)
        seen = None if valid is None else valid[:, here]
        output, state = step(*(x[:, :, here] for x in inputs), valid=seen, state=state)
        outputs.append(output)
    return torch.cat(outputs, dim=2), state
