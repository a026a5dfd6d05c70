"""The compiled kernels: found and loaded at first use, for the best instruction set that this machine has."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from subquad.ops.backends import warn_once
from subquad.ops.native import build
from subquad.ops.triton import availability

Strides = ctypes.c_int64 * 3
REMEDY = "python -m subquad.ops.native"
PRECISIONS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Precision` of half.h
SETS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}


class Kernels(NamedTuple):
    """What computes on the CPU, in float32 and half precision, and on CUDA."""

    name: Literal["native", "torch"]
    reason: str
    cuda: str  # what computes on a card, and why

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}\nCUDA: {self.cuda}"


def kernels_in_use() -> Kernels:
    """What computes on the CPU and on CUDA, subquad's own kernels or PyTorch's operators, and why.

    Kernels take float32, and half precision as it is or widened; float64 takes the operators. In the
    environment that a process starts with, SUBQUAD_NATIVE=0 switches off those for the CPU, SUBQUAD_TRITON=0
    those for CUDA.
    """
    reason, cuda = missing(), availability.in_use()
    return Kernels("native", load_library()[1], cuda) if reason is None else Kernels("torch", reason, cuda)


def missing() -> str | None:
    """Why there are no kernels."""
    library, reason = load_library()
    return reason if library is None else None


def why_not_float32(*inputs: Tensor | None) -> str | None:
    """Why the kernels cannot take these inputs, which must be of float32, on the CPU; None: they can."""
    for x in inputs:
        if x is not None and (x.dtype != torch.float32 or not x.is_cpu):
            return f"it takes float32 on the CPU, not {x.dtype} on {x.device.type}"
    return missing()


def why_not_half(first: Tensor, *inputs: Tensor | None) -> str | None:
    """The same for kernels that read half precision too: inputs are of one dtype."""
    dtype = first.dtype
    if dtype not in PRECISIONS or not first.is_cpu:
        return f"it takes float32 and half precision on the CPU, not {dtype} on {first.device.type}"
    for x in inputs:
        if x is not None and (x.dtype != dtype or not x.is_cpu):
            return f"it takes inputs of one dtype on the CPU, not {dtype} beside {x.dtype} on {x.device.type}"
    return missing()


@cache
def load_library() -> tuple[ctypes.CDLL | None, str]:
    """The library, if there is one and it is wanted, and what is to be said of it."""
    if os.environ.get("SUBQUAD_NATIVE") == "0":
        return None, "SUBQUAD_NATIVE=0 switches the kernels off"
    library, reason = find_library()
    if library is None:
        warn_once("cpu", reason)
    return library, reason


def find_library() -> tuple[ctypes.CDLL | None, str]:
    for name in SETS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",)):
        path = build.library(name)
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError as error:  # another system's, or without its OpenMP
                return None, f"{path.name} cannot be loaded: {error}"
            if not hasattr(library, "digest") or library.digest() != build.digest():
                return None, f"{path.name} is of other sources ({REMEDY} makes it anew)"
            return library, f"kernels for {name}"
    return None, f"no kernels were compiled when subquad was installed ({REMEDY} makes them)"


def rows(*names: str) -> list[tuple[str, type]]:
    """Fields for inputs of shape (b h t _): where they are, then their strides of batch, head and token."""
    return [*((name, ctypes.c_void_p) for name in names), *((f"{name}_stride", Strides) for name in names)]


class KernelCall(ctypes.Structure):
    """What a kernel is called with: a struct of kernels.h, with the tensors that it points to."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.held: list[Tensor] = []

    def point(self, **tensors: Tensor | None) -> None:
        """To inputs, which may have to be copied to be contiguous, or to outputs that have just been made."""
        for name, x in tensors.items():
            if x is not None:
                self._hold(name, x.contiguous())

    def tokens(self, **tensors: Tensor | None) -> None:
        """To inputs of shape (b h t _), with their strides."""
        for name, x in tensors.items():
            if x is not None:
                strides = x.stride()
                if strides[3] != 1:
                    x = x.contiguous()
                    strides = x.stride()
                self._hold(name, x)
                setattr(self, f"{name}_stride", strides[:3])

    def run(self, kernel: str) -> bool:
        """Whether the outputs can be used."""
        return not function(type(self), kernel)(ctypes.byref(self))

    def _hold(self, name: str, x: Tensor) -> None:
        self.held.append(x)
        setattr(self, name, x.data_ptr())


@cache
def function(struct: type[KernelCall], kernel: str) -> Callable[..., int]:
    """The kernel of that name, whose struct is as long as ours: with another it would read beyond it."""
    library, _ = load_library()
    assert library is not None
    theirs, ours = library.size_of(struct.__name__.encode()), ctypes.sizeof(struct)
    if theirs != ours:
        raise RuntimeError(f"{struct.__name__} has {ours} bytes in Python and {theirs} in kernels.h")
    return getattr(library, kernel)
