"""Calls of the operators that Python defines, past PyTorch's dispatcher where nobody listens there."""

from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.utils._python_dispatch import _get_current_dispatch_mode

PLAIN = (Tensor, torch.nn.Parameter)


def call(operator: CustomOpDef, *given: Any) -> Any:
    """What the operator gives; its body does it at once where there are no gradients, tracers or modes.

    The dispatcher's way to the body takes as long as attention among some sixty tokens.
    """
    if listened_to() or any(isinstance(x, Tensor) and type(x) not in PLAIN for x in given):
        return operator(*given)
    return operator._init_fn(*given)


def listened_to() -> bool:
    """Whether anyone has to see operators as such."""
    return (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or _get_current_dispatch_mode() is not None
    )
