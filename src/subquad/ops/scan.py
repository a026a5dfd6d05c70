"""Running a chunk function over a sequence."""

from collections.abc import Callable
from itertools import repeat
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
    # `split`, and no slices: the gradient of each slice would be as long as the sequence
    parts = zip(*(x.split(chunk, 2) for x in inputs), strict=True)
    masks = repeat(None) if valid is None else valid.split(chunk, 1)
    outputs = []
    for part, seen in zip(parts, masks):  # noqa: B905  # masks may go on
        output, state = step(*part, valid=seen, state=state)
        outputs.append(output)
    return torch.cat(outputs, dim=2), state
