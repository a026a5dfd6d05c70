"""Timing computations side by side: candidates alternate, so that a busy moment hits them all."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Literal

import torch

SAMPLE_S = 0.005  # quicker computations are called several times for one sample


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds a call took, over the rounds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    repeats: int  # rounds


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 5,
    seconds: float = 0.5,
    limit: float = math.inf,
    warmup: float = 0.1,
    clock: Literal["wall", "cpu"] = "wall",
    device: str | torch.device = "cpu",
) -> dict[str, Timing]:
    """Time `candidates` in rounds that call each of them, in alternating order.

    There are at least `repeats` rounds, and at least `seconds` go by; but once `limit` seconds have gone by,
    the round in progress is the last. Before that each candidate warms up for `warmup` seconds, at least
    one call long, unless `warmup` is 0. `clock="cpu"` counts the processor time of all threads: other
    processes hardly disturb it, but it takes `torch.set_num_threads(1)`, because waiting threads spin.
    """
    if not candidates or repeats < 1:
        raise ValueError(f"{len(candidates)} candidates and {repeats!r} repeats: give at least one of each")
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    cuda = torch.device(device).type == "cuda"

    def sample(compute: Callable[[], object], *, least: float) -> float:
        """Seconds a call takes, on the mean of as many as fill `least` seconds."""
        if cuda:
            torch.cuda.synchronize(device)
        calls, queue, start = 0, 1, now()
        while True:
            for _ in range(queue):
                compute()
            if cuda:
                torch.cuda.synchronize(device)
            calls, elapsed = calls + queue, now() - start
            if elapsed >= least:
                return elapsed / calls
            queue = calls if cuda else 1  # to wait for each would take as long as a short call

    if warmup > 0:
        for compute in candidates.values():
            sample(compute, least=warmup)
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    order, rounds, start = list(candidates), 0, time.perf_counter()
    while rounds < repeats or time.perf_counter() - start < seconds:
        for name in order:
            samples[name].append(sample(candidates[name], least=SAMPLE_S))
        order.reverse()
        rounds += 1
        if time.perf_counter() - start >= limit:
            break
    return {name: _summary(times) for name, times in samples.items()}


def _summary(samples: list[float]) -> Timing:
    times = [1e3 * sample for sample in samples]
    low, median, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return Timing(median=median, low=low, high=high, repeats=len(times))
