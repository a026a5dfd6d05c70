"""Running a function over the chunks of a sequence."""

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from subquad.ops.shared.allocation import concat_into
from subquad.ops.shared.transforms import transformed

FEATURE_BLOCK = 1024  # tokens whose features stay in a CPU's cache
DEVICE_TOKENS = 2**17  # tokens of all heads, whose features take longer to make than to ask for elsewhere
Chunk = tuple[tuple[Tensor, ...], Tensor | None]


def scan(
    step: Callable[..., tuple[Tensor, Any]],
    *inputs: Float[Tensor, "b h t _"],
    valid: Bool[Tensor, "b t"] | None,
    state: Any,
    chunk: int,
) -> tuple[Float[Tensor, "b h t e"], Any]:
    """Feed `inputs` to `step(*inputs, valid=…, state=…)` in chunks of `chunk` tokens.

    Returns what the chunks gave, joined, and the last state. An empty sequence is one empty chunk. Raises
    `ValueError` where a graph asks for a length that is free.
    """
    if isinstance(inputs[0].shape[2], torch.SymInt):
        raise ValueError(
            "this form goes chunk by chunk, and a graph holds those of one length: export it with a fixed one"
        )
    outputs = []
    for part, seen in chunks(*inputs, valid=valid, size=chunk):
        output, state = step(*part, valid=seen, state=state)
        outputs.append(output)
    b, h, _, e = outputs[0].shape
    return concat_into(outputs, outputs[0], b, h, inputs[0].shape[2], e, dim=2), state


def chunks(*inputs: Tensor, valid: Tensor | None = None, size: int) -> Iterator[Chunk]:
    """The tokens of all inputs and of the mask, `size` at a time; of none, one empty chunk."""
    # `split`, and no slices: the gradient of each slice would be as long as the sequence
    parts = zip(*(x.split(size, 2) for x in inputs), strict=True)
    masks = repeat(None) if valid is None else valid.split(size, 1)
    return zip(parts, masks)  # noqa: B905  # masks may go on


def blocks(*inputs: Tensor, valid: Tensor | None = None) -> Iterator[Chunk]:
    """Chunks as long as is good for speed. In a graph there is one, since the compiler cuts as it likes."""
    if torch.compiler.is_compiling():
        return iter([(inputs, valid)])
    return chunks(*inputs, valid=valid, size=block_tokens(inputs[0]))


def block_tokens(x: Float[Tensor, "b h t _"]) -> int:
    """How many tokens are best taken at once."""
    return FEATURE_BLOCK if x.is_cpu else max(FEATURE_BLOCK, DEVICE_TOKENS // max(1, x.shape[0] * x.shape[1]))


def recompute(function: Callable[..., Any], *inputs: Any) -> Any:
    """The function's result; the backward pass calls it again, for which only the inputs are kept."""
    if not torch.is_grad_enabled() or transformed():  # which take no checkpoints
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
