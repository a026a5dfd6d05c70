"""Floating-point operations of a computation, counted from the shapes of its matrix products."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, baddbmm_flop, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from subquad.measure.decompose import decompose_custom_ops
from subquad.torch_internals import FLASH, FLASH_BACKWARD

aten = torch.ops.aten


def count_flops(compute: Callable[..., object], **inputs: Any) -> int:
    """Multiplications and additions in matrix products, convolutions and attention of `compute(**inputs)`.

    A backward pass inside `compute` counts too. Fused attention counts as its two products over all pairs,
    masked or not. Elementwise work, sorting and factorisations do not count.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MISSING_IN_TORCH)
    counter.mod_tracker = _NoModuleTracker()
    visible = sdpa_kernel(SDPBackend.MATH)  # the counter cannot see into fused kernels
    with counter, decompose_custom_ops(), visible:
        compute(**inputs)
    return counter.get_total_flops()


class _NoModuleTracker(ModuleTracker):
    """Torch's own hooks the gradients of modules' inputs, and fails for leaves."""

    def __enter__(self) -> "_NoModuleTracker":
        return self

    def __exit__(self, *_: object) -> None:
        pass


Shape = tuple[int, ...]


def _matrix_vector(matrix: Shape, vector: Shape, *_: Any, **__: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _added_matrix_vector(added: Shape, matrix: Shape, vector: Shape, *_: Any, **__: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _vectors(left: Shape, right: Shape, *_: Any, **__: Any) -> int:
    return 2 * left[0]


def _added_product(added: Shape, left: Shape, right: Shape, *_: Any, **__: Any) -> int:
    return baddbmm_flop(added, left, right)


def _fused(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _fused_backward(gradient: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, q, k, v)


_MISSING_IN_TORCH = {
    aten.mv: _matrix_vector,
    aten.addmv: _added_matrix_vector,
    aten.dot: _vectors,
    aten.baddbmm_: _added_product,
    # code may ask for the fused kernel by name, whatever sdpa_kernel allows
    FLASH: _fused,
    FLASH_BACKWARD: _fused_backward,
}
