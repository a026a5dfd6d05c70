"""What may go on around a call: transforms of `torch.func`, forward mode, modes, second derivatives."""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, maybe_current_level, maybe_get_level
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.autograd.function import Function
from torch.utils._python_dispatch import _get_current_dispatch_mode

PLAINLY = "or the mechanism's `definition`, which is plain PyTorch"


def transformed() -> bool:
    """Whether a transform of `torch.func`, or differentiation in forward mode, is under way."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def passing() -> bool:
    """Whether tensors made now must not be kept: those of a transform, a mode or a tracer end with it."""
    return transformed() or torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def several(count: int) -> int:
    """`count`, in a graph one more: that for several sizes is another than that for a size of one.

    What is more must be hidden, as padding is.
    """
    return count + 1 if torch.compiler.is_compiling() else max(count, 1)


def lasting(x: Tensor) -> Tensor:
    """`x`, or zeros where it was made under a `vmap`, or by a mode for fake tensors, that has ended."""
    over = is_batchedtensor(x) and maybe_get_level(x) > (maybe_current_level() or 0)
    if over or (isinstance(x, FakeTensor) and _get_current_dispatch_mode() is None):
        return torch.zeros(())
    return x


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
