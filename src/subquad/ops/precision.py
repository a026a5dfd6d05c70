"""In which precision sums are kept."""

from typing import Any

import torch
from torch import Tensor


def wide(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs in float32 at least: sums kept in half precision drift as they grow."""
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in inputs)


def no_autocast(x: Tensor) -> Any:
    """A context in which `torch.autocast` does not narrow matrix products on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)
