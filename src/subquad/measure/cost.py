"""What one mechanism costs at one length, beside torch's fused attention: one cell of the bench."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.measure.flops import count_flops
from subquad.measure.memory import peak_memory
from subquad.measure.peers import installed_peers
from subquad.measure.roofline import Work, rates
from subquad.measure.timing import Timing, interleaved
from subquad.mechanism import Dims, Mechanism
from subquad.registry import build, network

WARMUP_TOKENS = 64  # are run first, so that libraries are loaded when memory is measured
COUNTED = (1024, 2048)  # tokens at which work is counted, where sequences are longer
RATES_S = 0.5  # seconds at most in which the machine's rates are measured
LIMIT = 3  # timing ends after this many times the seconds asked for, however few the rounds

OURS, REFERENCE = "ours", "reference"  # of those that are timed; peers go by their packages' names


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Milliseconds of a call: median, quartiles, rounds.

    reference_ms: of fused attention with the same causality.
    roofline_ms: the least time for the same work at this machine's rates, see `measure.roofline`.
    peers_ms: of the installed packages that have the mechanism too and can do this; none unless asked for.
    """

    ms: Timing
    reference_ms: Timing
    roofline_ms: float
    peers_ms: Mapping[str, Timing]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak memory in 10 ** 6 bytes, beyond inputs and weights, and how it was measured: `measure.memory`."""

    mb: float
    reference_mb: float
    method: str


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
    """Time and peak memory of a mechanism and of the reference, PyTorch's fused attention.

    Both get normal inputs and are timed in this process, interleaved. Give each cell a process of its own:
    memory is measured first, and exactly only in a process that has freed little before. The threads are
    torch's (`torch.set_num_threads`). The result has

    forward            a `Timed`, without a graph, in eval mode
    forward_backward   a `Timed`, with the gradients of all inputs and parameters; only if `backward`
    memory             a `Memory`, of the larger of the two

    Of a mixture by layer they are means over its layers, each member timed in the same turns.

    Raises `ValueError` for what cannot be built, `FloatingPointError` when the output is not finite.

    attention, options, causal: the mechanism's name, its options, and which of its forms.
    length, batch: tokens of a sequence, and sequences.
    heads, head_dim: of the attention.
    dtype: "float32", "bfloat16", "float16" or "float64".
    backward: whether training is timed too.
    peers: whether installed packages that have the mechanism are timed beside it.
    seconds: that each timing takes, about; where calls are slow it has fewer rounds, as its `repeats` says.
    device: of inputs and weights.
    """
    kind = find_dtype(dtype)
    dims = Dims(heads=heads, head_dim=head_dim, max_len=length)
    generator = torch.Generator().manual_seed(0)

    def normal(width: int) -> Tensor:
        x = torch.randn(batch, heads, length, width, generator=generator)
        return x.to(device, kind).requires_grad_()

    layers: list[Layer] = []
    for share, mechanism in built_layers(attention, dims, causal=causal, options=options):
        mechanism = mechanism.to(device, kind)
        inputs = {name: normal(width) for name, width in mechanism.projections().items()}
        weights = tuple(p for p in mechanism.parameters() if p.requires_grad)
        layers.append(Layer(share, mechanism, Candidate(mechanism, inputs, weights)))
    attend = partial(F.scaled_dot_product_attention, is_causal=causal)
    reference = Candidate(attend, {name: normal(head_dim) for name in ("query", "key", "value")})

    operations = {"forward": Candidate.forward}
    if backward:
        operations = {"forward_backward": Candidate.forward_backward, **operations}
    largest = next(iter(operations.values()))
    candidates = [*(layer.candidate for layer in layers), reference]
    for candidate in candidates:
        largest(candidate.shortened(WARMUP_TOKENS))
    *peaks, reference_peak = [peak_memory(partial(largest, x), device=device) for x in candidates]
    if not all(layer.candidate.forward().isfinite().all() for layer in layers):
        raise FloatingPointError(f"{attention!r} gives numbers that are not finite at length {length:,}")

    first, *others = layers
    peer_candidates = {
        peer.name: replace(first.candidate, mix=peer.attention_like(first.mechanism, length), weights=())
        for peer in (installed_peers(first.mechanism) if peers and not others else [])
    }
    shares = [layer.share for layer in layers]
    names = [f"{OURS} {place}" for place in range(len(layers))]
    result: dict[str, Any] = {}
    machine = rates(seconds=min(seconds, RATES_S), device=device)
    for name, operation in operations.items():
        for layer in layers:
            layer.mechanism.train(operation is not Candidate.forward)
        least = [machine.seconds(work(operation, x.candidate, x.mechanism, length)) for x in layers]
        runnable = {
            peer: candidate for peer, candidate in peer_candidates.items() if runs(operation, candidate)
        }
        timings = interleaved(
            {
                **{names[place]: partial(operation, x.candidate) for place, x in enumerate(layers)},
                REFERENCE: partial(operation, reference),
                **{peer: partial(operation, candidate) for peer, candidate in runnable.items()},
            },
            seconds=seconds,
            limit=LIMIT * seconds,
            warmup=0,
            device=device,
        )
        timed = Timed(
            ms=mean_timing([timings[name] for name in names], shares),
            reference_ms=timings[REFERENCE],
            roofline_ms=1e3 * mean(least, shares),
            peers_ms={peer: timings[peer] for peer in runnable},
        )
        result[name] = asdict(timed)
    memory = Memory(
        mb=mean([peak.mb for peak in peaks], shares),
        reference_mb=reference_peak.mb,
        method=reference_peak.method,
    )
    return result | {"memory": asdict(memory)}


def find_dtype(name: str) -> torch.dtype:
    """The floating-point type of that name. Raises `ValueError` for another."""
    kind: object = getattr(torch, name, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"unknown dtype {name!r}; give 'float32', 'bfloat16', 'float16' or 'float64'")
    return kind


Operation = Callable[["Candidate"], object]


def runs(operation: Operation, candidate: "Candidate") -> bool:
    """Whether another package supports this length and precision; it may raise anything where it does not."""
    try:
        operation(candidate)
    except Exception:
        return False
    return True


def work(operation: Operation, candidate: "Candidate", mechanism: Mechanism, length: int) -> Work:
    """The products as they are computed, and each input, output and gradient moved once.

    The products are counted at `length`, or at two shorter lengths and extrapolated with the power that the
    mechanism claims.
    """
    moved = sum(x.nbytes for x in candidate.inputs.values())
    moved += next(iter(candidate.inputs.values())).nbytes  # the output, as wide as the queries
    moved *= 1 if operation is Candidate.forward else 2
    if length <= COUNTED[-1]:
        return Work(flops=count_flops(partial(operation, candidate)), bytes=moved)
    first, second = (count_flops(partial(operation, candidate.shortened(tokens))) for tokens in COUNTED)
    power = mechanism.traits.cost
    part = (length**power - COUNTED[0] ** power) / (COUNTED[1] ** power - COUNTED[0] ** power)
    return Work(flops=first + part * (second - first), bytes=moved)


def built_layers(
    attention: str, dims: Dims, *, causal: bool, options: Mapping[str, Any]
) -> list[tuple[float, Mechanism]]:
    """The mechanism, or the members of a mixture by layer; with each the share of layers that it has."""
    members = network(attention, options)
    depth = sum(member.layers for member in members)
    return [(n / depth, build(name, dims, causal=causal, **own)) for name, own, n in members]


def mean(values: Sequence[float], shares: Sequence[float]) -> float:
    """Over all layers."""
    return sum(value * share for value, share in zip(values, shares, strict=True))


def mean_timing(timings: Sequence[Timing], shares: Sequence[float]) -> Timing:
    """Of one layer: the means of medians and of quartiles, as if all were slow in the same turns."""
    return Timing(
        median=mean([timing.median for timing in timings], shares),
        low=mean([timing.low for timing in timings], shares),
        high=mean([timing.high for timing in timings], shares),
        repeats=min(timing.repeats for timing in timings),
    )


@dataclass(frozen=True)
class Candidate:
    """An attention with its inputs."""

    mix: Callable[..., Tensor]
    inputs: Mapping[str, Tensor]
    weights: tuple[Tensor, ...] = ()

    def forward(self) -> Tensor:
        """Inference: no graph."""
        with torch.inference_mode():
            return self.mix(**self.inputs)

    def forward_backward(self) -> tuple[Tensor | None, ...]:
        """Training: the gradients of all inputs and weights that take part."""
        out = self.mix(**self.inputs)
        leaves = [*self.inputs.values(), *self.weights]
        return torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)

    def shortened(self, tokens: int) -> "Candidate":
        """The same with the first `tokens` tokens."""
        return replace(self, inputs={name: x[:, :, :tokens] for name, x in self.inputs.items()})


class Layer(NamedTuple):
    """A mechanism that is timed, and the share of a network's layers that have it."""

    share: float
    mechanism: Mechanism
    candidate: Candidate
