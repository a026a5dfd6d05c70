"""The least time in which a machine can do a piece of work: counted work over rates that it reaches itself.

    roofline = max(flops / product rate + exponentials / their rate, bytes / copy rate)

Products and exponentials are both done by the vector units, one after the other; reading and writing may go
on meanwhile (Williams, Waterman, Patterson: Roofline. CACM 52(4), 2009). The rates are the best that torch
reaches here in a moment of trying: products of square matrices, exponentials in cache, copies beyond it.
A kernel whose exponential is better than torch's can come in under its roofline.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

MATRIX_SIZES = (256, 512, 1024)  # the fastest is known only afterwards
IN_CACHE = 2**13  # elements
BEYOND_CACHE = 2**24  # elements

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What has to be done, however it is done."""

    flops: float  # multiplications and additions in products
    bytes: float  # each input read once, each output written once
    exponentials: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a machine can do in a second, on the threads that torch had."""

    flops: float
    bytes: float  # read and written
    exponentials: float
    threads: int

    def seconds(self, work: Work) -> float:
        """Seconds that the work takes at least."""
        computing = work.flops / self.flops + work.exponentials / self.exponentials
        return max(computing, work.bytes / self.bytes)


def rates(*, seconds: float = 0.5, clock: Clock = "wall", device: str | torch.device = "cpu") -> Rates:
    """Measure this machine for about `seconds`, in float32, on the threads that torch is set to.

    `clock="cpu"` counts processor time, which takes one thread, as in `subquad.measure.timing`.
    """
    share = seconds / (len(MATRIX_SIZES) + 2)
    products = []
    for size in MATRIX_SIZES:
        a, b, c = (torch.rand(size, size, device=device) for _ in range(3))
        products.append(2 * size**3 / best(lambda a=a, b=b, c=c: torch.mm(a, b, out=c), share, clock, device))
    x, y = (torch.rand(IN_CACHE, device=device) for _ in range(2))
    exponential = best(lambda: torch.exp(x, out=y), share, clock, device)
    source, target = (torch.ones(BEYOND_CACHE, device=device) for _ in range(2))
    copied = best(lambda: target.copy_(source), share, clock, device)
    return Rates(
        flops=max(products),
        bytes=2 * source.nbytes / copied,
        exponentials=IN_CACHE / exponential,
        threads=torch.get_num_threads(),
    )


def best(compute: Callable[[], object], seconds: float, clock: Clock, device: str | torch.device) -> float:
    """The fewest seconds that a call took, of those that fit into `seconds`, and of three at the least."""
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    cuda = torch.device(device).type == "cuda"
    times: list[float] = []
    begin = time.perf_counter()
    with torch.inference_mode():
        while len(times) < 3 or time.perf_counter() - begin < seconds:
            start = now()
            compute()
            if cuda:
                torch.cuda.synchronize(device)
            times.append(now() - start)
    tick = time.get_clock_info("process_time").resolution  # a clock may stand still for a call
    return min((x for x in times if x > 0), default=tick)
