"""Calls of the operators that Python defines: past PyTorch's dispatcher where nobody listens there, and under
the transforms of `torch.func`, which know no operators of this kind.

A transform gets the operator as an `autograd.Function` with rules of its own:

    gradients      the operator's own formula, as without a transform
    vmap           one call after the other, stacked: right for every operator, whatever its batch means
    forward mode   refused, since an operator without a rule for tangents gives zeros and no error
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from subquad.ops.shared.transforms import PLAINLY, transformed
from subquad.torch_internals import (
    CustomOpDef,
    current_dispatch_mode,
    jit_tracing,
    op_autograd,
    op_body,
    op_name,
    tree_map,
    unwrap_dead_wrappers,
)

PLAIN = (Tensor, torch.nn.Parameter)


def call_op(operator: CustomOpDef, *inputs: Any) -> Any:
    """What the operator gives; its body does it at once where there are no gradients, tracers or modes.

    The dispatcher's way to the body takes as long as attention among some sixty tokens.
    """
    if not dispatched(*inputs):
        return op_body(operator)(*inputs)
    if not transformed():
        return operator(*inputs)
    if torch.compiler.is_compiling():  # which runs what raises without compiling it
        raise ValueError("no graph can hold a transform of torch.func here: compile without fullgraph=True")
    return under_transforms(operator).apply(*inputs)


def dispatched(*inputs: Any) -> bool:
    """Whether a call with these inputs goes through PyTorch's dispatcher, which would else cost time only."""
    return needs_dispatcher() or not all(type(x) in PLAIN or not isinstance(x, Tensor) for x in inputs)


def needs_dispatcher() -> bool:
    """Whether anyone has to see operators as such."""
    return (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or transformed()
        or jit_tracing()
        or current_dispatch_mode() is not None
    )


def differentiable_once(operator: CustomOpDef) -> None:
    """Have an operator that computes gradients refuse to be differentiated itself, and say what to do."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise ValueError(
            f"{op_name(operator)} has no derivative, so that there is no second one here: take first ones, "
            f"without create_graph=True, {PLAINLY}"
        )

    operator.register_autograd(refuse)


class Context:
    """What a formula for gradients sees, with tensors that outlived their transform made plain again."""

    def __init__(self, ctx: Any) -> None:
        self.ctx = ctx

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        return unwrap_dead_wrappers(self.ctx.saved_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ctx, name)


@cache
def under_transforms(operator: CustomOpDef) -> type[Function]:
    """The operator with rules for the transforms of `torch.func`."""

    class Ruled(Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            return operator(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup_context = op_autograd(operator).setup_context
            if setup_context is not None:
                setup_context(ctx=ctx, inputs=inputs, output=output)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            backward = op_autograd(operator).backward
            assert backward is not None
            found = backward(Context(ctx), *grads)
            return tuple(None if isinstance(x, list) else x for x in found)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            raise ValueError(
                f"{op_name(operator)} has no derivative in forward mode (torch.func.jvp, jacfwd, hessian): "
                f"take reverse mode, torch.autograd.grad, torch.func.vjp or jacrev, {PLAINLY}"
            )

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, int]:
            def sample(i: int) -> Any:
                return tree_map(lambda x, dim: x if dim is None else x.select(dim, i), inputs, in_dims)

            results = [call_op(operator, *sample(i)) for i in range(info.batch_size)]
            if isinstance(results[0], Tensor):
                return torch.stack(results), 0
            return tuple(map(torch.stack, zip(*results, strict=True))), 0

    return Ruled
