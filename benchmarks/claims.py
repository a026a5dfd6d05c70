"""Claims that are no ratio at one length: crossovers, exponents, an endless stream, a very long sequence,
and how fast tasks are made.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import subjects
from benchmarks.targets import FUSED, HEADS, WIDTH, Row, Target
from subquad import tasks
from subquad.measure.cost import Candidate
from subquad.measure.memory import MB, peak_memory
from subquad.measure.scaling import exponent
from subquad.measure.timing import interleaved
from subquad.mechanism import Dims
from subquad.registry import build, catalog, find
from subquad.tasks.generated import Generated

GRID = (64, 128, 256, 512, 1024, 2048)
CROSSOVERS = {  # features → tokens from which each tier is to be faster than the fused softmax
    64: {"kernel": 128, "torch": 256},
    128: {"kernel": 256, "torch": 512},
    256: {"kernel": 512, "torch": 1024},
}
STEEPEST = 1.05  # exponent of time and memory, of mechanisms that claim linear cost
FIRST, LAST, LAST_QUICK = 4096, 65536, 16384  # tokens between which it is fitted
MILLION = 2**20
CHUNK = 4096
LONG = 262_144
STREAMED = {"performer": {"features": 256}, "linear": {}, "local": {"width": 256}}
GROWTH_MB, EXTRA_MB = 8.0, 200.0
# Examples a minute on one core, at the full size. A picture takes 0.77 s by the code of Pathfinder's authors.
GENERATORS = {"listops": 100_000.0, "pathfinder": 100 * 60 / 0.77}
GENERATED = {"listops": 5_000, "pathfinder": 2_048}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What was claimed, and what was found."""

    name: str
    claimed: str
    found: str
    met: bool
    gate: bool  # whether the command fails where it is not met


def measurements(*, quick: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each claim's name, and the kind and options of `measure`."""
    for features in CROSSOVERS:
        yield f"crossover m = {features}", "crossover", {"features": features}
    for name, cls in catalog().items():
        if cls.traits.cost == 1:
            last = LAST_QUICK if quick else LAST
            yield f"exponents of {name}", "exponents", {"attention": name, "last": last}
    heads = 2 if quick else HEADS
    for name in STREAMED:
        yield f"a million tokens through {name}", "stream", {"attention": name, "heads": heads}
    for name in STREAMED:
        yield f"{LONG:,} tokens of {name}", "long", {"attention": name, "heads": heads}
    for name, count in GENERATED.items():
        yield f"generator of {name}", "generator", {"task": name, "count": count}


def measure(kind: str, **options: Any) -> dict[str, Any]:
    """A dict, to become JSON: {"claims": [the fields of each `Claim`]}."""
    measures = {
        **{"crossover": crossover, "exponents": exponents, "stream": stream, "long": long},
        "generator": generator,
    }
    return {"claims": [vars(claim) for claim in measures[kind](**options)]}


def crossover(features: int) -> list[Claim]:
    """The first length of the grid from which on each tier is faster, forward."""
    ratios: dict[str, dict[int, float]] = {name: {} for name in subjects.tiers()}
    clock = "cpu" if torch.get_num_threads() == 1 else "wall"
    for length in GRID:
        aims = (Target(tier="kernel", rival=FUSED, length=length, ratio=1),)
        row = Row(name="", title="", attention="performer", options={"features": features}, targets=aims)
        calls = subjects.layers(row, length, compiled=False)
        ready = {name: call for name, call in calls.items() if not isinstance(call, subjects.Missing)}
        timings = interleaved(ready, repeats=7, seconds=0.4, limit=5, clock=clock)
        for name in ratios:
            ratios[name][length] = timings[FUSED].median / timings[name].median
    return [
        Claim(
            name=f"crossover with {FUSED}, FAVOR+ m = {features}, {name}",
            claimed=f"{CROSSOVERS[features][name]:,} tokens",
            found=f"{first:,} tokens" if first < math.inf else f"beyond {GRID[-1]:,} tokens",
            met=first <= CROSSOVERS[features][name],
            gate=False,
        )
        for name, by_length in ratios.items()
        for first in [from_where(by_length)]
    ]


def from_where(ratios: dict[int, float]) -> float:
    """The shortest length from which on every ratio is above one; infinity where there is none."""
    slower = [length for length, ratio in ratios.items() if ratio <= 1]
    faster = [length for length in ratios if not slower or length > max(slower)]
    return min(faster, default=math.inf)


def exponents(attention: str, last: int) -> list[Claim]:
    """Of time and of peak memory, forward, at the default options with two heads."""
    lengths = [FIRST * 2**i for i in range(int(math.log2(last / FIRST)) + 1)]
    causal = not find(attention).traits.bidirectional
    torch.manual_seed(0)
    candidates = {}
    for length in lengths:
        dims = Dims(heads=2, head_dim=WIDTH, max_len=length)
        ours = build(attention, dims, causal=causal).eval()
        candidates[length] = Candidate(ours, subjects.inputs(ours, length))
    candidates[FIRST].shortened(subjects.PREFIX).forward()
    peaks = [peak_memory(candidates[length].forward).mb for length in lengths]
    clock = "cpu" if torch.get_num_threads() == 1 else "wall"
    taken = interleaved(
        {str(length): candidates[length].forward for length in lengths},
        repeats=3, seconds=0.5, limit=60, warmup=0, clock=clock,
    )  # fmt: skip
    medians = [taken[str(length)].median for length in lengths]
    form = "causal" if causal else "bidirectional"
    return [
        Claim(
            name=f"exponent of {figure}, {attention} ({form}), {FIRST:,} to {last:,} tokens",
            claimed=f"at most {STEEPEST}",
            found=f"{power:.2f}",
            met=power <= STEEPEST,
            gate=False,
        )
        for figure, values in (("time", medians), ("memory", [max(peak, 0.01) for peak in peaks]))
        for power in [exponent(lengths, values)]
    ]


def stream(attention: str, heads: int) -> list[Claim]:
    """A million tokens in chunks: after a sixteenth of them, memory is to grow no more."""
    mechanism = build(attention, Dims(heads=heads, head_dim=WIDTH), causal=True, **STREAMED[attention]).eval()
    generator = torch.Generator().manual_seed(0)
    state = None

    def run(tokens: int) -> None:
        nonlocal state
        for _ in range(tokens // CHUNK):
            drawn = {
                name: torch.randn(1, heads, CHUNK, width, generator=generator)
                for name, width in mechanism.projections().items()
            }
            with torch.inference_mode():
                out, state = mechanism.step(**drawn, state=state)
            if not out.isfinite().all():
                raise ArithmeticError(f"{attention} gives numbers that are not finite")

    run(CHUNK)
    first = peak_memory(lambda: run(MILLION // 16))
    rest = peak_memory(lambda: run(MILLION - MILLION // 16))
    return [
        Claim(
            name=f"{MILLION:,} tokens stream through causal {attention}, {heads} heads",
            claimed="in memory that does not grow",
            found=f"{first.mb:.0f} MB after a sixteenth, {rest.mb:.0f} MB after all",
            met=rest.mb <= first.mb + GROWTH_MB,
            gate=True,
        )
    ]


def long(attention: str, heads: int) -> list[Claim]:
    """Forward and backward of a very long sequence: what it takes beyond inputs, output and gradients."""
    dims = Dims(heads=heads, head_dim=WIDTH)
    mechanism = build(attention, dims, causal=True, **STREAMED[attention]).eval()
    candidate = Candidate(mechanism, subjects.inputs(mechanism, LONG), subjects.weights(mechanism))
    candidate.shortened(subjects.PREFIX).forward_backward()
    peak = peak_memory(candidate.forward_backward).mb
    due = sum(x.nbytes for x in candidate.inputs.values())  # a gradient each
    due += 2 * 4 * heads * LONG * WIDTH  # the output and its gradient
    beyond = peak - due / MB
    return [
        Claim(
            name=f"forward and backward of causal {attention} over {LONG:,} tokens, {heads} heads",
            claimed=f"in inputs, output, gradients and {EXTRA_MB:.0f} MB",
            found=f"in these and {beyond:,.0f} MB",
            met=beyond <= EXTRA_MB,
            gate=True,
        )
    ]


def generator(task: str, count: int) -> list[Claim]:
    """Examples of a task's full size, drawn one block after the other, by processor time."""
    full = tasks.sized(tasks.find(task), "full")
    made = tasks.build(task, **{**full, "train": count, "validation": 1, "test": 1})
    assert isinstance(made, Generated)
    start = time.process_time()
    for _ in made.parts():
        pass
    rate = 60 * count / (time.process_time() - start)
    return [
        Claim(
            name=f"examples of {task} a minute, full size, one core",
            claimed=f"at least {GENERATORS[task]:,.0f}",
            found=f"{rate:,.0f}",
            met=rate >= GENERATORS[task],
            gate=False,
        )
    ]
