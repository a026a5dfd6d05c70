"""The compiled kernels: found and loaded at first use, for the best instruction set that this machine has."""

import ctypes
import os
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from subquad.ops.native import build

Strides = ctypes.c_int64 * 3
REMEDY = "python -m subquad.ops.native"
PRECISIONS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Precision` of half.h
SETS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}


class Backend(NamedTuple):
    """What computes on the CPU, in float32 and half precision."""

    name: Literal["native", "torch"]
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def backend() -> Backend:
    """What computes on the CPU, subquad's own kernels or PyTorch's operators, and why.

    Kernels take float32, and half precision as it is or widened; float64 takes the operators. The
    environment's SUBQUAD_NATIVE=0 switches the kernels off, at any time.
    """
    if os.environ.get("SUBQUAD_NATIVE") == "0":
        return Backend("torch", "SUBQUAD_NATIVE=0 switches the kernels off")
    loaded, told = load()
    return Backend("torch" if loaded is None else "native", told)


def usable(*inputs: Tensor | None) -> bool:
    """Whether the kernels can take these inputs: CPU, float32, and there are kernels."""
    for x in inputs:
        if x is not None and (x.dtype != torch.float32 or not x.is_cpu):
            return False
    return kernels() is not None


def readable(*inputs: Tensor) -> bool:
    """Whether the kernels that read half precision can take these inputs: CPU, and all of one dtype."""
    first = inputs[0].dtype
    for x in inputs:
        if x.dtype != first or not x.is_cpu:
            return False
    return first in PRECISIONS and kernels() is not None


def kernels() -> ctypes.CDLL | None:
    """The library, unless there is none or it is switched off."""
    return None if os.environ.get("SUBQUAD_NATIVE") == "0" else load()[0]


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library, if there is one, and what is to be said of it."""
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


class Call(ctypes.Structure):
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
        """To inputs of shape (b h t _), whose strides are told."""
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
        library, _ = load()
        assert library is not None
        return not getattr(library, kernel)(ctypes.byref(self))

    def _hold(self, name: str, x: Tensor) -> None:
        self.held.append(x)
        setattr(self, name, x.data_ptr())
