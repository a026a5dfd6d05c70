"""What is timed: subquad in its tiers, torch's fused softmax, and peers, each ready to be called."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.targets import FUSED, HEADS, OWN_FLOAT32, TIERS, WIDTH, Row, Tier
from subquad.measure.cost import Candidate
from subquad.measure.peers import PEERS
from subquad.mechanism import Dims, Mechanism, Traits
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.ops.backends import backend, using
from subquad.registry import build

ENCODER = {"dim": 256, "depth": 4, "heads": 4}
NO_ATTENTION = "no attention"  # the rest of an encoder, which is the roofline of a training step
PREFIX = 256  # tokens before the step that is timed
Call = Callable[[], object]


def tier(name: Tier) -> AbstractContextManager[None]:
    """Within, subquad computes with its kernels as the environment has it, or without."""
    return nullcontext() if name == "kernel" else using("reference")


def without_kernels(call: Call) -> Call:
    def reference() -> object:
        with tier("torch"):
            return call()

    return reference


def tiers() -> tuple[Tier, ...]:
    """Those that this installation has."""
    return TIERS if backend().name == "native" else ("torch",)


@dataclass(frozen=True)
class Missing:
    """Why a rival does not run."""

    reason: str


def mechanism(row: Row, length: int, *, dtype: str = "float32") -> Mechanism:
    dims = Dims(heads=HEADS, head_dim=WIDTH, max_len=length)
    torch.manual_seed(0)
    return build(row.attention, dims, causal=row.causal, **row.options).to(getattr(torch, dtype)).eval()


def inputs(of: Mechanism, length: int, *, dtype: str = "float32", seed: int = 0) -> dict[str, Tensor]:
    """Normal numbers; the same whatever the precision."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, of.dims.heads, length)
    drawn = {
        name: torch.randn(*shape, width, generator=generator) for name, width in of.projections().items()
    }
    return {name: x.to(getattr(torch, dtype)).requires_grad_() for name, x in drawn.items()}


def calls(row: Row, length: int, *, compiled: bool = True) -> dict[str, Call | Missing]:
    """Everyone who takes part in a row at that length: subquad by tier, and each rival by name."""
    prepare = {"step": steps, "training step": training}.get(row.operation, layers)
    return prepare(row, length, compiled=compiled)


def layers(row: Row, length: int, *, compiled: bool) -> dict[str, Call | Missing]:
    ours = mechanism(row, length, dtype=row.dtype)
    tensors = inputs(ours, length, dtype=row.dtype)
    contenders = by_tier(make_call(row, ours, tensors, weights(ours)))
    for rival in row.rivals(length):
        if rival == FUSED:
            fused = partial(F.scaled_dot_product_attention, is_causal=row.causal)
            qkv = {name: normal(length) for name in ("query", "key", "value")}
            contenders[rival] = make_call(row, fused, qkv)
        elif rival == OWN_FLOAT32:
            full = mechanism(row, length)
            own = by_tier(make_call(row, full, inputs(full, length), weights(full)))
            contenders |= {f"{rival}, {name}": call for name, call in own.items()}
        else:
            contenders[rival] = peer(rival, ours, length, compiled, partial(make_call, row, inputs=tensors))
    return contenders


def weights(of: nn.Module) -> tuple[Tensor, ...]:
    return tuple(p for p in of.parameters() if p.requires_grad)


def make_call(
    row: Row, mix: Callable[..., Tensor], inputs: Mapping[str, Tensor], weights: tuple[Tensor, ...] = ()
) -> Call:
    candidate = Candidate(mix, inputs, weights)
    return candidate.forward if row.operation == "forward" else candidate.forward_backward


def by_tier(call: Call) -> dict[str, Call | Missing]:
    both: dict[Tier, Call] = {"kernel": call, "torch": without_kernels(call)}
    return {name: both[name] for name in tiers()}


def normal(*lengths: int) -> Tensor:
    return torch.randn(1, HEADS, *lengths, WIDTH).requires_grad_()


def peer(
    name: str, ours: Mechanism, length: int, compiled: bool, ready: Callable[[Any], Call]
) -> Call | Missing:
    """A peer that takes seconds to compile runs only where that is wanted."""
    other = PEERS[name]
    if not other.installed:
        return Missing(f'not installed: pip install "{other.package}"')
    if other.compiled and not compiled:
        return Missing("compiled: left out of --quick")
    return ready(other.attention_like(ours, length))


def steps(row: Row, length: int, *, compiled: bool) -> dict[str, Call | Missing]:
    """The next token after `length` others; ours remembers them in a state whose size they do not change."""
    ours = mechanism(row, length)
    with torch.inference_mode():
        _, state = ours.step(**inputs(ours, PREFIX), state=None)
        token = {name: x.detach().clone() for name, x in inputs(ours, 1).items()}
        q, k, v = (normal(size).detach().clone() for size in (1, length, length))

    def step() -> object:
        with torch.inference_mode():
            return ours.step(**token, state=state)

    def attend() -> Tensor:
        with torch.inference_mode():
            return F.scaled_dot_product_attention(q, k, v)

    contenders = by_tier(step) | {FUSED: attend}
    for rival in row.rivals(length)[1:]:
        contenders[rival] = recurrent_step(token)
    return contenders


def recurrent_step(token: Mapping[str, Tensor]) -> Call | Missing:
    """fast-transformers' own recurrent layer, which keeps its sums in the state it is given."""
    if not PEERS["fast-transformers"].installed:
        return Missing('not installed: pip install "pytorch-fast-transformers"')
    from subquad.measure.peers import import_quietly

    attention = import_quietly("fast_transformers.recurrent.attention.self_attention.linear_attention")
    layer = attention.RecurrentLinearAttention(WIDTH).eval()
    q, k, v = (x[:, :, 0] for x in token.values())
    memory: list[Any] = [None]

    def step() -> object:
        with torch.inference_mode():
            out, memory[0] = layer(q, k, v, memory[0])
            return out

    return step


class PeerLayer(nn.Module):
    """A peer where a layer of heads has its mechanism."""

    def __init__(self, mix: Callable[..., Tensor], traits: Traits) -> None:
        super().__init__()
        self.mix = mix
        self.traits = traits

    def forward(self, *, valid: Tensor | None = None, **inputs: Tensor) -> Tensor:
        return self.mix(**inputs)

    def detached_inputs(self) -> tuple[str, ...]:
        return ()


def training(row: Row, length: int, *, compiled: bool) -> dict[str, Call | Missing]:
    """A whole step of an optimiser: an encoder forward and back, and its weights changed."""
    x = torch.randn(1, length, ENCODER["dim"])
    encoder = built(row.attention, row, length)
    contenders = by_tier(training_step(encoder, x))
    bare = copy.deepcopy(encoder)
    replace_mechanisms(bare, lambda q, k, v: v)
    contenders[NO_ATTENTION] = training_step(bare, x)
    for rival in row.rivals(length):
        if rival == FUSED:
            contenders[rival] = training_step(built("softmax", row, length, options={}), x)
            continue
        other = copy.deepcopy(encoder)

        def ready(mix: Callable[..., Tensor], other: Encoder = other) -> Call:
            replace_mechanisms(other, mix)
            return training_step(other, x)

        first = encoder.get_submodule("blocks.0.attention.mechanism")
        assert isinstance(first, Mechanism)
        contenders[rival] = peer(rival, first, length, compiled, ready)
    return contenders


def replace_mechanisms(encoder: Encoder, mix: Callable[..., Tensor]) -> None:
    """In place of the mechanism of each layer."""
    for block, mechanism in zip(encoder.blocks, encoder.mechanisms(), strict=True):
        block.get_submodule("attention").mechanism = PeerLayer(mix, mechanism.traits)


def built(attention: str, row: Row, length: int, **settings: Any) -> Encoder:
    torch.manual_seed(0)
    chosen = {"options": row.options, **settings}
    config = EncoderConfig(attention=attention, causal=row.causal, max_len=length, **ENCODER, **chosen)
    return Encoder(config)


def training_step(encoder: Encoder, x: Tensor) -> Call:
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        encoder(x).square().mean().backward()
        optimiser.step()

    return step
