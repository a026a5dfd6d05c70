"""PyTorch's private names: every one that subquad uses, and what for. No other file names any.

They may change in any release of PyTorch, so that `tests/test_torch_internals.py` asks for each in the
installed one. Where one is missing, importing this file fails and names the releases that have it. Nothing is
done without: a tracer or a transform that is overlooked gives wrong gradients and no error.

    current_dispatch_mode   whether a mode (fake tensors, counters) has to see operators
    fakes_tensors           whether a mode is on whose tensors, fake or functional, end with it
    jit_tracing             whether `torch.jit.trace` has to see operators
    transformed             whether a transform of `torch.func`, or forward mode, has to see operators
    is_batched, is_wrapped  tensors under `vmap`, whose values cannot be read, and under any such transform
    has_outlived            a kept tensor whose `vmap` or fake mode has ended, which must be made anew
    unwrap_dead_wrappers    saved tensors of a transform that has ended, as plain ones
    CustomOpDef             the type of what `torch.library.custom_op` returns
    op_name, op_body        its qualified name; its Python function, for calls that nobody has to see
    op_autograd             its formula for gradients, which transforms get as an `autograd.Function`
    op_body_of              the Python function of an operator that a dispatch mode meets, for counters
    recording               gradients inside an operator's body, which PyTorch calls below its autograd
    assert_async            a condition that is checked on the device, or by a traced graph
    version                 how often a tensor was written to; None where nobody counts
    storage_id              which memory a tensor lies in, to count it once
    child                   a module's part, where getattr fails: in a compiled module of torch 2.6
    FLASH, FLASH_BACKWARD   fused attention's operators on a CPU, whose work PyTorch's counter leaves out
    FakeTensorMode, TorchDispatchMode, tree_iter, tree_map      documented, but in private modules
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

try:
    import torch._C._functorch as functorch
    from torch._C import DispatchKey, DispatchKeySet, _ForceDispatchKeyGuard
    from torch._functorch.utils import unwrap_dead_wrappers as unwrap_dead_wrappers
    from torch._library.custom_ops import OPDEFS, CustomOpDef
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
    from torch._subclasses.functional_tensor import FunctionalTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._python_dispatch import _get_current_dispatch_mode as current_dispatch_mode
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes
    from torch.utils._pytree import tree_iter as tree_iter
    from torch.utils._pytree import tree_map as tree_map

    is_batched, is_wrapped = functorch.is_batchedtensor, functorch.is_functorch_wrapped_tensor
    assert_async = torch.ops.aten._assert_async
    FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
except (AttributeError, ImportError) as error:
    raise ImportError(f"{error}; subquad is tested with torch 2.6 to 2.13: install one of these") from error


def transformed() -> bool:
    """Whether a transform of `torch.func`, or differentiation in forward mode, is under way."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def fakes_tensors() -> bool:
    return any(isinstance(mode, (FakeTensorMode, FunctionalTensorMode)) for mode in dispatch_modes())


def jit_tracing() -> bool:
    return torch._C._get_tracing_state() is not None


def has_outlived(x: Tensor) -> bool:
    """Whether `x` was made under a `vmap`, or by a mode for fake tensors, that has ended."""
    if is_batched(x) and functorch.maybe_get_level(x) > (functorch.maybe_current_level() or 0):
        return True
    return isinstance(x, FakeTensor) and current_dispatch_mode() is None


def op_name(op: CustomOpDef) -> str:
    return op._qualname


def op_body(op: CustomOpDef) -> Callable[..., Any]:
    return op._init_fn


class OpAutograd(NamedTuple):
    """What `register_autograd` was given; None where it was not."""

    setup_context: Callable[..., Any] | None
    backward: Callable[..., Any] | None


def op_autograd(op: CustomOpDef) -> OpAutograd:
    return OpAutograd(op._setup_context_fn, op._backward_fn)


def op_body_of(operator: Any) -> Callable[..., Any] | None:
    """The Python function of what a dispatch mode meets; None unless `torch.library.custom_op` made it."""
    op = OPDEFS.get(operator.name())
    return None if op is None else op._init_fn


@contextmanager
def recording() -> Iterator[None]:
    """Gradients are recorded within an operator's body, which PyTorch calls below its autograd."""
    excluded = torch._C._dispatch_tls_local_exclude_set() - DispatchKeySet(DispatchKey.AutogradFunctionality)
    with torch.enable_grad(), _ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded):
        yield


def child(parent: nn.Module, name: str) -> nn.Module | None:
    """The part of that name; None where there is none as yet."""
    return parent._modules.get(name)


def version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


def storage_id(storage: torch.UntypedStorage) -> int:
    return storage._cdata
