"""In PyTorch, all chunks side by side: a number of operations that does not grow with the length.

For devices that wait for each operation longer than it takes. As `reference.py`, but for how states pass from
chunk to chunk.
"""

from functools import partial

from torch import Tensor

from subquad.ops.recurrence import RecurrenceCall, RecurrenceResult, blocks, decay, products, side_by_side
from subquad.ops.recurrence.rows import Gradients
from subquad.ops.shared.parallel import why_not_parallel
from subquad.ops.shared.segments import segment_tokens

advance = partial(products.advance, chain=side_by_side)
advance_backward = partial(products.backward, chain=side_by_side)


def refuses(call: RecurrenceCall) -> str | None:
    return why_not_parallel(call.tokens.q)


def forward(call: RecurrenceCall) -> RecurrenceResult:
    return blocks.forward(call, advance, size=segment(call))


def backward(grads: tuple[Tensor, Tensor], call: RecurrenceCall, raw: Tensor) -> Gradients:
    return blocks.backward(grads, call, raw, advance, advance_backward, size=segment(call))


def segment(call: RecurrenceCall) -> int:
    """Tokens of a block."""
    tokens = call.tokens
    d, e = tokens.q.shape[3], tokens.v.shape[3]
    each = 8 * (d + e) + 4 * decay.CHUNK + 6 * d * e // decay.CHUNK  # numbers of a token, forward and back
    return segment_tokens(tokens.q, each, multiple=decay.CHUNK)
