"""In which precision sums are kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from subquad.ops.shared.allocation import LARGE, concat_into
from subquad.ops.shared.operator import needs_dispatcher
from subquad.ops.shared.waiting import may_wait

NARROW = (torch.float16, torch.bfloat16)
MAX_ELEMENTS = 2**18


def wide(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs in float32 at least: sums kept in half precision drift as they grow."""
    return tuple(x.float() if x.dtype in NARROW else x for x in inputs)


def read_narrow(x: Tensor) -> bool:
    """Whether backends for the device of `x` widen half precision themselves, as they read it."""
    return x.is_cuda or x.is_meta


def narrowed(dtype: torch.dtype, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What was widened, in `dtype` again where it is read so; else as it is."""
    return tuple(x.to(dtype) for x in inputs) if read_narrow(inputs[0]) else inputs


def widened(dtype: torch.dtype) -> torch.dtype:
    """That in which sums of numbers in `dtype` are kept."""
    return torch.promote_types(dtype, torch.float32)


def by_heads(compute: Callable[..., Tensor], q: Tensor, *keyed: Tensor) -> Tensor:
    """`compute(own, q, ...)` for slices `own` of the heads, side by side in the dtype of the last input.

    Inputs come wide, on the CPU in half precision a few heads at a time, whose copies stay in cache. So do
    long ones, where nothing keeps the copies for gradients: their temporaries take memory that was in use
    before. On CUDA they come as they are: its fused softmax and its products take half precision many times
    faster, and keep their sums wide themselves.
    """
    *_, v = keyed
    if not may_wait(v):
        return compute(slice(None), q, *keyed)
    if not v.is_cpu or (v.dtype not in NARROW and (needs_dispatcher() or v.nbytes < LARGE)):
        return compute(slice(None), *wide(q, *keyed)).to(v.dtype)
    heads = q.shape[1]
    step = max(1, MAX_ELEMENTS // max(1, v[:, :1].numel()))
    slices = [slice(first, first + step) for first in range(0, heads, step)]
    parts = zip(slices, *(x.split(step, 1) for x in (q, *keyed)), strict=True)
    outs = (compute(own, *wide(*part)) for own, *part in parts)
    return concat_into(outs, v, *q.shape[:3], v.shape[3], dim=1)
