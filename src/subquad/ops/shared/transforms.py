"""What may go on around a call: transforms of `torch.func`, forward mode, modes, second derivatives."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from subquad.torch_internals import current_dispatch_mode, has_outlived, transformed

PLAINLY = "or the mechanism's `definition`, which is plain PyTorch"


def passing() -> bool:
    """Whether tensors made now must not be kept: those of a transform, a mode or a tracer end with it."""
    return transformed() or torch.compiler.is_compiling() or current_dispatch_mode() is not None


def several(count: int) -> int:
    """`count`, in a graph one more: that for several sizes is another than that for a size of one.

    What is more must be hidden, as padding is.
    """
    return count + 1 if torch.compiler.is_compiling() else max(count, 1)


def lasting(x: Tensor) -> Tensor:
    """`x`, or zeros where it was made under a `vmap`, or by a mode for fake tensors, that has ended."""
    return torch.zeros(()) if has_outlived(x) else x


def once(x: Tensor, what: str) -> Tensor:
    """`x`, whose gradient refuses to be differentiated: `what` has none, and what to do instead."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return x
    found = _Once.apply(x, what)
    assert isinstance(found, Tensor)
    return found


class _Once(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, what: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        _, ctx.what = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, None]:
        return _Last.apply(grad, ctx.what), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)


class _Last(_Once):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        raise ValueError(ctx.what)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        raise ValueError(ctx.what)
