"""In PyTorch, for any device and precision: by chunks of matrix products, in float32 at least."""

from functools import partial

from torch import Tensor

from subquad.ops.recurrence import RecurrenceCall, RecurrenceResult, blocks, in_turn, products
from subquad.ops.recurrence.rows import Gradients

advance = partial(products.advance, chain=in_turn)
advance_backward = partial(products.backward, chain=in_turn)


def refuses(call: RecurrenceCall) -> None:
    """It takes every call."""


def forward(call: RecurrenceCall) -> RecurrenceResult:
    return blocks.forward(call, advance)


def backward(grads: tuple[Tensor, Tensor], call: RecurrenceCall, raw: Tensor) -> Gradients:
    return blocks.backward(grads, call, raw, advance, advance_backward)
