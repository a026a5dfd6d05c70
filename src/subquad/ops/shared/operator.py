"""Calls of the operators that Python defines: past PyTorch's dispatcher where nobody listens there, and under
the transforms of `torch.func`, which know no operators of this kind.

Gradients alone need no dispatcher: the operator's formula stands in an `autograd.Function`, whose way is much
shorter. A transform gets the operator as an `autograd.Function` with rules of its own:

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
    """What the operator gives; past the dispatcher where no tracer, transform or mode has to see it.

    The dispatcher's way to the body takes as long as attention among some sixty tokens.
    """
    if not watched(*inputs):
        if not learnt(*inputs):
            return op_body(operator)(*inputs)
        if op_autograd(operator).backward is not None:
            return with_formula(operator).apply(*inputs)
        return operator(*inputs)
    if not transformed():
        return operator(*inputs)
    if torch.compiler.is_compiling():  # which runs what raises without compiling it
        raise ValueError("no graph can hold a transform of torch.func here: compile without fullgraph=True")
    return under_transforms(operator).apply(*inputs)


def followed(*inputs: Any) -> bool:
    """Whether gradients, or anyone who has to see operators as such, follow a call with these inputs."""
    return learnt(*inputs) or watched(*inputs)


def dispatched(*inputs: Any) -> bool:
    """`followed`, or gradients may be asked for of what else the call reads."""
    return torch.is_grad_enabled() or watched(*inputs)


def learnt(*inputs: Any) -> bool:
    """Whether gradients will be asked for; nothing flows into lists."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def watched(*inputs: Any) -> bool:
    """Whether anyone has to see operators as such: what goes past the dispatcher would be missing there."""
    return is_watched() or not all(type(x) in PLAIN or not isinstance(x, Tensor) for x in inputs)


def needs_dispatcher() -> bool:
    """Whether gradients may be asked for, or anyone has to see operators as such."""
    return torch.is_grad_enabled() or is_watched()


def is_watched() -> bool:
    return (
        torch.compiler.is_compiling() or transformed() or jit_tracing() or current_dispatch_mode() is not None
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
def with_formula(operator: CustomOpDef) -> type[Function]:
    """The operator's body with its formula for gradients."""
    body, (setup_context, backward) = op_body(operator), op_autograd(operator)
    assert backward is not None

    class Learnt(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = body(*inputs)
            if setup_context is not None:
                setup_context(ctx=ctx, inputs=inputs, output=output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return without_lists(backward(ctx, *grads))

    Learnt.__name__ = op_name(operator)
    return Learnt


def without_lists(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    """As an `autograd.Function` gives them: lists of tensors are inputs that nothing flows into."""
    return tuple(None if isinstance(x, list) else x for x in gradients)


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
            return without_lists(backward(Context(ctx), *grads))

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
