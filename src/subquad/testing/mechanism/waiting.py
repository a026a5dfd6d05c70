"""That the host never waits for a GPU, which may take longer than the work, and which no CUDA graph can hold.

PyTorch's `meta` device stands for the GPU, so that any machine can check it: its tensors have no numbers, and
are treated as those of CUDA, at which nobody looks (`ops/shared/waiting.py`). Two modes look on, one at
operators that have no answer before the device has come to them, one at what Python copies to the device.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxtyping
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import Tensors, each_form, padding_masks, random_inputs
from subquad.torch_internals import TorchDispatchMode, op_body_of, tree_iter

READING = (
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "repeat_interleave.Tensor"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount"),
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"),
)
MAKING = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
WAITS, COPIES = "waits for the device", "copies numbers to the device"
LIBRARIES = ("<", *(str(Path(inspect.getfile(x)).parent) for x in (torch, jaxtyping)))  # "<": no file


def check_never_waits_for_the_device(cls: type[Mechanism]) -> None:
    """On a GPU neither the forward and the backward pass nor a step makes the host wait for the device."""
    for mechanism in each_form(cls):
        mechanism.to("meta")
        for valid in (None, padding_masks()["anywhere"].to("meta")):
            inputs = {name: x.to("meta") for name, x in random_inputs(mechanism).items()}
            leaves = [x.requires_grad_() for x in (*inputs.values(), *mechanism.parameters())]
            with no_waiting():
                out = mechanism(**inputs, valid=valid)
                torch.autograd.grad(out.sum(), leaves, allow_unused=True)
            if mechanism.causal and cls.traits.state is not None:
                check_steps(mechanism, inputs, valid)


@torch.no_grad()
def check_steps(mechanism: Mechanism, inputs: Tensors, valid: Tensor | None) -> None:
    """The same of a stream's first tokens, of one more, and of one in place."""
    state = None
    for part, in_place in ((slice(0, 8), False), (slice(8, 9), False), (slice(9, 10), True)):
        own = {name: x[:, :, part] for name, x in inputs.items()}
        seen = None if valid is None else valid[:, part]
        if in_place:
            state = mechanism.reserve(state, 1)
        with no_waiting():
            _, state = mechanism.step(**own, valid=seen, state=state, in_place=in_place)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, what would wait on a GPU is an `AssertionError` on `meta` that names its file and line."""
    with Operators(), Copies():
        yield


class Operators(TorchDispatchMode):
    """Sees every operator, within those that Python defines too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (body := op_body_of(func)) is not None:
            with self, Copies():
                return body(*args, **kwargs)
        with self:
            if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                return out
        name = func.name().removeprefix("aten::")
        if fault := fault_of(name, args, kwargs):
            raise AssertionError(f"{place()} {fault}: {name}")
        return func(*args, **kwargs)


class Copies(TorchFunctionMode):
    """Sees where Python's numbers and lists become tensors, which is no operator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in MAKING and out.is_meta and not on_device(args[-1]):
            raise AssertionError(f"{place()} {COPIES}: {func.__name__}")
        if func in INDEXING and on_device(args[0]) and lists(args[1]):
            raise AssertionError(f"{place()} {COPIES}: an index that is a list")
        return out


def fault_of(name: str, args: Any, kwargs: Any) -> str:
    """What an operator would do on a GPU that it should not; empty where there is nothing."""
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
    here = any(map(on_device, tensors))
    if here and (name in READING or name.partition(".")[0] in READING):
        return WAITS
    if name in ("_to_copy", "copy_"):
        source = on_device(tensors[-1])
        target = kwargs.get("device", tensors[0].device)
        if source != (torch.device(target).type == "meta"):
            return WAITS if source else COPIES
    if here and name.startswith(("index.", "index_put", "_index_put", "_unsafe_index")):
        places = [x for x in args[1] if x is not None]
        if not all(map(on_device, places)):
            return COPIES
        # a single number goes where a mask is without a count of the places
        if any(x.dtype == torch.bool for x in places) and not (len(args) > 2 and args[2].ndim == 0):
            return WAITS
    return ""


def on_device(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_meta


def lists(index: Any) -> bool:
    return any(isinstance(x, list) for x in (index if isinstance(index, tuple) else (index,)))


def place() -> str:
    """The file and line of the innermost code that is neither a library's nor of this file."""
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and not name.startswith(LIBRARIES):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    raise AssertionError("somebody calls this")
