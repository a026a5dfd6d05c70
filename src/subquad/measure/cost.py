"""What one mechanism costs at one length, beside torch's fused attention: one cell of the bench."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.measure import peers as others
from subquad.measure.flops import count_flops
from subquad.measure.memory import peak_memory
from subquad.measure.roofline import Work, rates
from subquad.measure.timing import Timing, interleaved
from subquad.mechanism import Dims, Mechanism
from subquad.registry import build

WARMUP = 64  # tokens that are run first, so that libraries are loaded when memory is measured
COUNTED = (1024, 2048)  # tokens at which work is counted, where sequences are longer
RATING = 0.5  # seconds at most in which the machine's rates are measured
PATIENCE = 3  # timing ends after this many times the seconds asked for, however few the rounds


def cost(
    *,
    attention: str,
    options: Mapping[str, Any],
    causal: bool,
    length: int,
    heads: int,
    head_dim: int,
    batch: int,
    dtype: str = "float32",
    backward: bool = True,
    peers: bool = False,
    seconds: float = 1.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time and peak memory of a mechanism and of torch's fused attention with the same causality.

    Both get normal inputs and run in this process, in turns. Give each cell a process of its own: memory
    is measured first, and exactly only in a process that has freed little before.

    forward_ms            without a graph, in eval mode: median, quartiles, rounds
    forward_backward_ms   with the gradients of all inputs and parameters; only if `backward`
    peak_mb               what the larger of the two takes at its highest, beyond inputs and weights
    peak_method           how that was found, see `subquad.measure.memory.peak_memory`
    reference_...          the same three of the fused attention
    ..._roofline_ms          what the work would take at this machine's own rates, see `measure.roofline`
    peers                 only if `peers`: the timings, by name, of the installed packages that have it too

    Each timing takes about `seconds`; where calls are slow it has fewer rounds, and "repeats" says how
    many. The threads are torch's (`torch.set_num_threads`). Raises `ValueError` for what cannot be built,
    `FloatingPointError` when the output is not finite.
    """
    kind: object = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"unknown dtype {dtype!r}; give 'float32', 'bfloat16', 'float16' or 'float64'")
    dims = Dims(heads=heads, head_dim=head_dim, max_len=length)
    mechanism = build(attention, dims, causal=causal, **options).to(device, kind)
    known = others.found(mechanism) if peers else []
    generator = torch.Generator().manual_seed(0)

    def normal(width: int) -> Tensor:
        drawn = torch.randn(batch, heads, length, width, generator=generator)
        return drawn.to(device, kind).requires_grad_()

    inputs = {name: normal(width) for name, width in mechanism.projections().items()}
    ours = Candidate(mechanism, inputs, tuple(p for p in mechanism.parameters() if p.requires_grad))
    attend = partial(F.scaled_dot_product_attention, is_causal=causal)
    fused = Candidate(attend, {name: normal(head_dim) for name in ("query", "key", "value")})

    largest = Candidate.forward_backward if backward else Candidate.forward
    for candidate in (ours, fused):
        largest(candidate.shortened(WARMUP))
    peak, fused_peak = (peak_memory(partial(largest, each), device=device) for each in (ours, fused))
    if not ours.forward().isfinite().all():
        raise FloatingPointError(f"{attention!r} gives numbers that are not finite at length {length:,}")

    turns = partial(interleaved, seconds=seconds, limit=PATIENCE * seconds, warmup=0, device=device)
    deeds = {"forward_ms": Candidate.forward}
    if backward:
        deeds = {"forward_backward_ms": Candidate.forward_backward, **deeds}
    beside = {peer.name: replace(ours, mix=peer.made(mechanism, length), weights=()) for peer in known}
    timings: dict[str, Timing] = {}
    of_peers: dict[str, dict[str, Any]] = {name: {} for name in beside}
    rooflines: dict[str, float] = {}
    reached = rates(seconds=min(seconds, RATING), device=device)
    for name, deed in deeds.items():
        mechanism.train(name != "forward_ms")
        rooflines[name.replace("_ms", "_roofline_ms")] = 1e3 * reached.seconds(
            work(deed, ours, mechanism, length)
        )
        able = {other: candidate for other, candidate in beside.items() if runs(deed, candidate)}
        taken = turns(
            {
                name: partial(deed, ours),
                f"reference_{name}": partial(deed, fused),
                **{other: partial(deed, candidate) for other, candidate in able.items()},
            }
        )
        for other in able:
            of_peers[other][name] = asdict(taken.pop(other))
        timings |= taken
    measured = {name: asdict(timing) for name, timing in timings.items()} | rooflines
    measured |= {"peak_mb": peak.mb, "reference_peak_mb": fused_peak.mb, "peak_method": peak.method}
    return measured | ({"peers": of_peers} if peers else {})


def runs(deed: Callable[["Candidate"], object], candidate: "Candidate") -> bool:
    """Whether another package can do it at this length and in this precision, whatever it raises if not."""
    try:
        deed(candidate)
    except Exception:
        return False
    return True


def work(
    deed: Callable[["Candidate"], object], candidate: "Candidate", mechanism: Mechanism, length: int
) -> Work:
    """What is computed, as it is computed, and each input, output and gradient moved once.

    The products are counted at `length`, or at two shorter ones, from which on they grow as the mechanism
    claims: in proportion to what is added, or to its square.
    """
    moved = sum(x.nbytes for x in candidate.inputs.values())
    moved += next(iter(candidate.inputs.values())).nbytes  # the output, as wide as the queries
    moved *= 1 if deed is Candidate.forward else 2
    if length <= COUNTED[-1]:
        return Work(flops=count_flops(partial(deed, candidate)), bytes=moved)
    first, second = (count_flops(partial(deed, candidate.shortened(tokens))) for tokens in COUNTED)
    power = mechanism.traits.cost
    part = (length**power - COUNTED[0] ** power) / (COUNTED[1] ** power - COUNTED[0] ** power)
    return Work(flops=first + part * (second - first), bytes=moved)


@dataclass(frozen=True)
class Candidate:
    """A way to mix tokens, with what it is fed."""

    mix: Callable[..., Tensor]
    inputs: Mapping[str, Tensor]
    weights: tuple[Tensor, ...] = ()

    def forward(self) -> Tensor:
        """As when a model is used: no graph."""
        with torch.inference_mode():
            return self.mix(**self.inputs)

    def forward_backward(self) -> tuple[Tensor | None, ...]:
        """As when it is trained: the gradients of all inputs and weights, where they have one."""
        out = self.mix(**self.inputs)
        leaves = [*self.inputs.values(), *self.weights]
        return torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)

    def shortened(self, tokens: int) -> "Candidate":
        """The same, fed the first `tokens` tokens."""
        return replace(self, inputs={name: x[:, :, :tokens] for name, x in self.inputs.items()})
