"""Triton kernels, compiled into its cache by many processes before anything is launched."""

from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from benchmarks.cuda.plan import Compilation, Scale


class Compiled(TypedDict):
    """How many kernels, and what is wrong with some: they spill, or Triton compiles a product wrongly."""

    kernels: int
    faults: list[str]


def compiled(row: Compilation, scale: Scale) -> Compiled:
    import torch

    from subquad.ops.triton.availability import ARCHITECTURES
    from subquad.ops.triton.gate import families, launches_of, need_of

    if scale.device != "cuda":
        return Compiled(kernels=0, faults=[])
    architecture = ARCHITECTURES[torch.cuda.get_device_capability()[0]]
    dtype = getattr(torch, row.dtype)
    launches = [x for _, family in families() for x in launches_of(family, dtype, row.width, architecture)]
    own = launches[row.share :: row.of]
    faults = [
        f"{launch.kernel.__name__}: {fault}"
        for launch in own
        for fault in need_of(launch, architecture).faults(architecture)
    ]
    return Compiled(kernels=len(own), faults=faults)
