"""A recurrence over blocks of tokens, and its gradient, for which each block is done again.

Tokens are (b h t _), and may have one row or head for all.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BLOCK = 512  # tokens whose chunks run side by side; measured best on CPUs, forward and back, of 256 to 4,096

Advance = Callable[..., tuple[Tensor, Tensor]]  # (*tokens, state=…) to outputs and the next state
PullBack = Callable[..., tuple[Tensor, ...]]  # (grad, grad_state, *tokens, state=…) to all gradients


def blocks(*tokens: Tensor) -> list[tuple[Tensor, ...]]:
    """The tokens of each block; no tokens are one empty block."""
    return list(zip(*(x.split(BLOCK, 2) for x in tokens), strict=True))


def by_blocks(advance: Advance, *tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs, and the last state: new tensors both."""
    outputs, last = [], state
    for block in blocks(*tokens):
        out, last = advance(*block, state=last)
        outputs.append(out)
    return together(outputs), last.clone() if last is state else last


def pull_back_by_blocks(
    advance: Advance, pull_back: PullBack, grad: Tensor, grad_state: Tensor, *tokens: Tensor, state: Tensor
) -> list[Tensor]:
    """Gradients of the tokens and of the state, from those of the outputs and of the last state."""
    given, found = blocks(*tokens), [state]
    for block in given[:-1]:
        found.append(advance(*block, state=found[-1])[1])
    pulled = []
    for block, before, seen in zip(given[::-1], found[::-1], grad.split(BLOCK, 2)[::-1], strict=True):
        *of_tokens, grad_state = pull_back(seen, grad_state, *block, state=before)
        pulled.append(of_tokens)
    return [together(parts) for parts in zip(*pulled[::-1], strict=True)] + [grad_state]


def together(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(parts), 2) if len(parts) > 1 else parts[0].contiguous()
