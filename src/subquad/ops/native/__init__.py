"""Kernels for the CPU in C++, behind plain C: float32, optional, and the same numbers as PyTorch's operators.

`backend()` says what is in use and why. The wrappers take tensors as they come from projections, with any
strides but the last, and check nothing: the functions in `ops/` that call them do.
"""

from subquad.ops.native.library import Backend, backend, usable

__all__ = ["Backend", "backend", "usable"]
