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

        def again(grad: Tensor, *given: Any) -> Tensor | tuple[Tensor, ...]:
            with recording():
                leaves = [x.detach().requires_grad_() for x in given[:learnt]]
                out = function(*leaves, *given[learnt:])
                found = torch.autograd.grad(out, leaves, grad, materialize_grads=True)
            return found if learnt > 1 else found[0]

        def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            found = call_op(backward, grad, *restored(ctx))
            found = found if learnt > 1 else (found,)
            return *found, *(None for _ in ctx.given[learnt:])

        forward = torch.library.custom_op(
            f"subquad::{name}", function, mutates_args=(), schema=f"({inputs}) -> Tensor"
        )
        backward = torch.library.custom_op(
            f"subquad::{name}_backward",
            again,
            mutates_args=(),
            schema=f"(Tensor grad, {inputs}) -> {f'({results})' if learnt > 1 else results}",
        )
        forward.register_fake(lambda *given: given[learnt - 1].new_empty(shape(*given)))
        backward.register_fake(
            lambda grad, *given: (
                tuple(x.new_empty(x.shape) for x in given[:learnt])
                if learnt > 1
                else given[0].new_empty(given[0].shape)
            )
        )
        forward.register_autograd(gradients, setup_context=remember)
        differentiable_once(backward)

        @wraps(function)
        def run(*given: Any) -> Tensor:
            return call_op(forward, *given) if torch.compiler.is_compiling() else function(*given)

        return run

    return decorate


def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.given = tuple(Tensor if isinstance(x, Tensor) else x for x in inputs)


def restored(ctx: Any) -> list[Any]:
    """What `remember` was given."""
    saved = iter(ctx.saved_tensors)
    return [next(saved) if x is Tensor else x for x in ctx.given]
