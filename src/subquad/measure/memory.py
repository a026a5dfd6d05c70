"""Peak memory of a computation: counted, the same on every machine, or as resident on this one."""

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from subquad.measure.decompose import decompose_custom_ops
from subquad.torch_internals import TorchDispatchMode, storage_id, tree_iter

MB = 1e6
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def peak_bytes(compute: Callable[..., object], **inputs: Any) -> int:
    """The most bytes of new tensors alive at once while `compute(**inputs)` runs, by count.

    Views and in-place results are their storage's, once; what a graph keeps for the backward pass
    counts until the graph dies; inputs and whatever else existed before do not count. What an operator
    allocates and frees inside itself is not seen.
    """
    with _StorageCounter() as counter, decompose_custom_ops():
        compute(**inputs)
    return counter.peak


class Peak(NamedTuple):
    """How much memory a computation took at its highest, beyond what was in use when it began."""

    mb: float  # 10 ** 6 bytes
    method: Literal["resident", "counted", "cuda"]


def peak_memory(compute: Callable[[], object], *, device: str | torch.device = "cpu") -> Peak:
    """The memory that one call of `compute` takes on this machine, beyond what is in use already.

    Run `compute` once before, on little data, so that libraries are loaded; and measure before the process
    has freed large blocks, or the allocator spreads new ones thinly over what they left, which shows as
    more. How it was measured is part of the answer:

    "resident"  the rise of the process's resident memory to its highest point, as Linux keeps it
    "counted"   `peak_bytes`, where there is no Linux to ask or it does not let us
    "cuda"      the rise of torch's own account of the CUDA device
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        compute()
        torch.cuda.synchronize(device)
        return Peak((torch.cuda.max_memory_allocated(device) - before) / MB, "cuda")
    with _return_freed_memory():
        if not _reset_peak():
            return Peak(peak_bytes(compute) / MB, "counted")
        before = _resident("VmRSS")
        compute()
        return Peak(max(0, _resident("VmHWM") - before) / MB, "resident")


def process_peak_mb() -> float:
    """The most memory this process has held so far, in 10 ** 6 bytes, libraries included."""
    with suppress(OSError):
        return max(_resident("VmHWM"), _peak_before_reset) / MB
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


_peak_before_reset = 0  # bytes: the highest peak that `peak_memory` has reset


def _reset_peak() -> bool:
    """Have the kernel keep the highest resident memory from now on; False where it will not."""
    global _peak_before_reset
    try:
        highest = _resident("VmHWM")
        _CLEAR_REFS.write_text("5")  # proc(5), /proc/pid/clear_refs: 5 resets the peak resident set size
    except OSError:
        return False
    _peak_before_reset = max(_peak_before_reset, highest)
    return True


def _resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of this process in memory now, or at their highest."""
    for line in _STATUS.read_text().splitlines():
        name, _, size = line.partition(":")
        if name == field:
            return 1024 * int(size.removesuffix("kB"))
    raise OSError(f"{_STATUS} has no {field}")


@contextmanager
def _return_freed_memory() -> Iterator[None]:
    """Within, freed memory is returned to the system at once, where the allocator is the GNU C library's.

    Left to itself it keeps freed blocks and fits new ones between them: of the same computation it then
    holds up to twice the bytes in use, another number each time. Afterwards it keeps blocks as in a
    process that has freed large ones before.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, 2**16)
    mallopt(_M_TRIM_THRESHOLD, 2**16)
    trim(0)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # mallopt(3): the most that its own adjustment reaches
        mallopt(_M_TRIM_THRESHOLD, 2**26)


class _StorageCounter(TorchDispatchMode):
    """Adds the bytes of each storage when an operator makes it, and subtracts them when it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.counted: dict[int, int] = {}  # bytes, by storage
        self.existing: dict[int, int] = {}  # bytes that do not count, because they were there before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lifted = func is torch.ops.aten.lift_fresh.default  # torch.tensor(...) makes its data unseen
        for storage in _storages((args, kwargs)):
            self._add(storage, new=lifted)
        with self:  # inference mode hands over composite operators whole
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        for storage in _storages(out):
            self._add(storage, new=True)
        return out

    def _add(self, storage: torch.UntypedStorage, *, new: bool) -> None:
        identity, size = storage_id(storage), storage.nbytes()
        if identity not in self.counted:
            self.counted[identity] = 0
            self.existing[identity] = 0 if new else size
            weakref.finalize(storage, self._free, identity).atexit = False
        size = max(0, size - self.existing[identity])  # a storage may have been resized
        self.live += size - self.counted[identity]
        self.counted[identity] = size
        self.peak = max(self.peak, self.live)

    def _free(self, identity: int) -> None:
        self.live -= self.counted.pop(identity)
        del self.existing[identity]


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))
