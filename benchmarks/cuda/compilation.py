"""Triton kernels, compiled into its cache by many processes before anything is launched."""

from typing import Any, TypedDict

import torch

from benchmarks.cuda.plan import Compilation
from subquad.ops.triton.availability import ARCHITECTURES


class Compiled(TypedDict):
    kernels: int


def compiled(row: Compilation) -> Compiled:
    """The row's share of what backends launch, as a launch would have it: `source_of` makes other keys."""
    from subquad.ops.triton.gate import families, launches_of
    from subquad.ops.triton.launch import OPTIONS

    architecture, dtype = ARCHITECTURES[torch.cuda.get_device_capability()[0]], getattr(torch, row.dtype)
    launches = [x for _, family in families() for x in launches_of(family, dtype, row.width, architecture)]
    own = launches[row.share :: row.of]
    for launch in own:
        kernel: Any = launch.kernel
        options = {"num_warps": launch.config.warps, "num_stages": launch.config.stages, **OPTIONS}
        kernel.warmup(*launch.inputs, grid=launch.grid, **launch.constants, **options)
    return Compiled(kernels=len(own))
