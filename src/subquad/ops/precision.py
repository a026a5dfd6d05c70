"""In which precision sums are kept."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

NARROW = (torch.float16, torch.bfloat16)


def wide(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs in float32 at least: sums kept in half precision drift as they grow."""
    return tuple(x.float() if x.dtype in NARROW else x for x in inputs)


def no_autocast(x: Tensor) -> Any:
    """A context in which `torch.autocast` does not narrow matrix products on the device of `x`."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
