"""The one place from which kernels are launched, or recorded in place of that, to be counted and compiled.

    @kernel
    def scale(x, out, n, BLOCK: tl.constexpr): ...

    launch(scale, (ceil_div(n, 64),), x, out, n, config=Config({"BLOCK": 64}, warps=4, stages=2))

Every launch says its warps and stages: Triton's own default of stages is not what the gate has compiled.
Lengths, batches and numbers of heads make no variant of a kernel, so that new ones compile nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from inspect import unwrap
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
import triton
from torch import Tensor

from subquad.ops.triton.availability import ARCHITECTURES

if TYPE_CHECKING:
    from subquad.ops.triton.configs import Config

SIZES = (
    *("n", "heads", "segment", "segments", "queries", "keys", "tiles", "group", "mask_stride"),
    *("chunks", "blocks", "rounds", "round", "chunk"),
)
OPTIONS = {"enable_fp_fusion": True}  # its default will change
INTERPRETER = 90  # the architecture whose block sizes it runs

Grid = tuple[int, ...]


@runtime_checkable
class Kernel(Protocol):
    """A function that Triton compiles."""

    __name__: str
    arg_names: list[str]

    def __getitem__(self, grid: Grid) -> Any: ...


class Launch(NamedTuple):
    """One that was recorded."""

    kernel: Kernel
    grid: Grid
    inputs: tuple[Any, ...]
    constants: dict[str, Any]
    config: "Config"


_recorded: ContextVar[tuple[int, list[Launch]] | None] = ContextVar("recorded", default=None)


def kernel(function: Any) -> Any:
    """A kernel to be launched, whose arguments of these names are sizes that make no variant of it."""
    return triton.jit(do_not_specialize=SIZES)(unwrap(function))  # tests wrap functions in checks of types


def inlined(function: Any) -> Any:
    """A function that kernels call."""
    return triton.jit(unwrap(function))


def launch(kernel: Kernel, grid: Grid, *inputs: Any, config: "Config", **constants: Any) -> None:
    """A program for each place of the grid. The first of the inputs tells the device; of block sizes and
    constants, a kernel gets those that it has parameters for.
    """
    if 0 in grid:
        return
    constants = {name: x for name, x in (config.blocks | constants).items() if name in kernel.arg_names}
    recording = _recorded.get()
    if recording is not None:
        recording[1].append(Launch(kernel, grid, inputs, constants, config))
        return
    device = (inputs[0][0] if isinstance(inputs[0], tuple) else inputs[0]).device
    options = {"num_warps": config.warps, "num_stages": config.stages, **OPTIONS}
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        kernel[grid](*inputs, **constants, **options)


@contextmanager
def recorded(architecture: int) -> Iterator[list[Launch]]:
    """Within, nothing is launched, and inputs may be on the meta device: what would be there."""
    token = _recorded.set((architecture, launches := []))
    try:
        yield launches
    finally:
        _recorded.reset(token)


def architecture_of(device: torch.device) -> int:
    """That of a card; elsewhere the one that launches are recorded for, or the interpreter's."""
    if device.type == "cuda":
        return ARCHITECTURES[torch.cuda.get_device_capability(device)[0]]
    recording = _recorded.get()
    return INTERPRETER if recording is None else recording[0]


def tokens(x: Tensor) -> tuple[Tensor, int, int, int]:
    """Of shape (b h t _), as kernels take them: with the strides of batch, head and token."""
    assert x.stride(3) == 1 or x.shape[3] <= 1
    b, h, t, _ = x.stride()
    return x, b, h, t


def side_by_side(x: Tensor) -> Tensor:
    """Tokens whose numbers lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def ceil_div(n: int, size: int) -> int:
    """How many pieces of that size hold n; Triton's own takes ten times as long."""
    return -(-n // size)


def power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << max(0, n - 1).bit_length()
