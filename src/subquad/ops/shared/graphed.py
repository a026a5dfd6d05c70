"""Operators for the graphs of `torch.compile` and `torch.export`, of functions in plain PyTorch.

Where shapes on the way depend on the length in more than one manner (segments, bands, the logarithm), a graph
of the single steps would be for one length. As one node it is for all. Outside of graphs the functions are
called as they are; the node's backward pass does them again.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from subquad.ops.shared.operator import call_op, differentiable_once
from subquad.torch_internals import recording

Shape = tuple[int, ...]


def graphed(
    name: str, inputs: str, *, learnt: int, shape: Callable[..., Shape]
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A function as the operator `name` in graphs.

    `inputs` is its schema. The first `learnt` inputs have gradients; the result has the dtype of the last of
    these, and the `shape` that follows from all inputs. The function takes its inputs by place.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        results = ", ".join(["Tensor"] * learnt)

        def differentiate(grad: Tensor, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
            with recording():
                leaves = [x.detach().requires_grad_() for x in inputs[:learnt]]
                out = function(*leaves, *inputs[learnt:])
                gradients = torch.autograd.grad(out, leaves, grad, materialize_grads=True)
            gradients = tuple(x.contiguous() for x in gradients)  # as the graph expects them, and none a view
            return gradients if learnt > 1 else gradients[0]

        def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            result = call_op(backward, grad, *restored(ctx))
            result = result if learnt > 1 else (result,)
            return *result, *(None for _ in ctx.inputs[learnt:])

        forward = torch.library.custom_op(
            f"subquad::{name}", function, mutates_args=(), schema=f"({inputs}) -> Tensor"
        )
        backward = torch.library.custom_op(
            f"subquad::{name}_backward",
            differentiate,
            mutates_args=(),
            schema=f"(Tensor grad, {inputs}) -> {f'({results})' if learnt > 1 else results}",
        )
        forward.register_fake(lambda *inputs: inputs[learnt - 1].new_empty(shape(*inputs)))
        backward.register_fake(
            lambda grad, *inputs: (
                tuple(x.new_empty(x.shape) for x in inputs[:learnt])
                if learnt > 1
                else inputs[0].new_empty(inputs[0].shape)
            )
        )
        forward.register_autograd(gradients, setup_context=remember)
        differentiable_once(backward)

        @wraps(function)
        def run(*inputs: Any) -> Tensor:
            return call_op(forward, *inputs) if torch.compiler.is_compiling() else function(*inputs)

        return run

    return decorate


def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.inputs = tuple(Tensor if isinstance(x, Tensor) else x for x in inputs)


def restored(ctx: Any) -> list[Any]:
    """The inputs that `remember` saw."""
    saved = iter(ctx.saved_tensors)
    return [next(saved) if x is Tensor else x for x in ctx.inputs]
