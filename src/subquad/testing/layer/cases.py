"""A network of two layers for the checks, in each form and with each set of options that the traits name."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from subquad.mechanism import State, Valid
from subquad.nn.layers.layer import Layer, LayerConfig, LayerTraits, claims
from subquad.nn.layers.stack import run_layers, step_layers
from subquad.nn.positions import HiddenStates
from subquad.nn.sequence import Sequence, make_sequence
from subquad.testing.mechanism.cases import LENGTH, Tensors

CONFIG = {"dim": 8, "heads": 2, "mlp_ratio": 2.0, "max_len": LENGTH}


class NetworkState(NamedTuple):
    offset: Int[Tensor, " b"]
    layers: tuple[State, ...]


class Network(nn.Module):
    """Layers of one class, one after another."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: HiddenStates, valid: Valid | None = None) -> Sequence:
        sequence, _ = make_sequence(x, valid=valid)
        return run_layers(self.members(), sequence)

    def step(
        self,
        x: HiddenStates,
        *,
        valid: Valid | None = None,
        state: NetworkState | None = None,
        in_place: bool = False,
    ) -> tuple[HiddenStates, NetworkState]:
        offset = x.new_zeros(len(x), dtype=torch.int64) if state is None else state.offset
        before = [None] * len(self.layers) if state is None else state.layers
        sequence, offset = make_sequence(x, valid=valid, offset=offset)
        out, later = step_layers(self.members(), sequence, before, in_place=in_place)
        return out.values, NetworkState(offset, later)

    def members(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]


class Case(NamedTuple):
    """A way to build a layer: with which options, in which form, and what it claims then."""

    options: Mapping[str, Any]
    causal: bool
    claims: LayerTraits

    def __str__(self) -> str:
        form = "causal" if self.causal else "bidirectional"
        return f"{form}, with options {dict(self.options)}" if self.options else form


def cases(cls: type[Layer]) -> Iterator[Case]:
    """Every set of options in every form that the layer claims with them."""
    for chosen in cls.traits.checked:
        claimed = claims(cls, chosen)
        for causal in (True, False):
            if claimed.causal == "strict" if causal else claimed.bidirectional:
                yield Case(chosen, causal, claimed)


def build_network(
    cls: type[Layer], case: Case, *, depth: int = 2, dropout: float = 0.0, seed: int = 0, **config: Any
) -> Network:
    """A network in eval mode and float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        said = {**CONFIG, "causal": case.causal, "depth": depth, "dropout": dropout, **config}
        layers = [cls(LayerConfig(**said, index=index), **case.options) for index in range(depth)]
        return Network(layers).double().eval()


def random_tokens(
    *, batch: int = 2, length: int = LENGTH, requires_grad: bool = False, seed: int = 1
) -> HiddenStates:
    """Normal hidden states in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, CONFIG["dim"], dtype=torch.float64, generator=generator)
    return x.requires_grad_(requires_grad)


def real_tokens(out: Sequence) -> Tensor:
    """The values of all real tokens, row by row: `(tokens, m)`."""
    return out.values.flatten(0, 1) if out.valid is None else out.values[out.valid]


def targets_of(network: Network, x: Tensor) -> Tensors:
    """All that a gradient should reach."""
    return {"x": x, **{f"parameter {name}": p for name, p in network.named_parameters()}}


def stream_network(
    network: Network,
    x: HiddenStates,
    chunks: list[int],
    *,
    valid: Bool[Tensor, "b t"] | None = None,
    state: NetworkState | None = None,
    in_place: bool = False,
) -> tuple[HiddenStates, NetworkState | None]:
    """What `step` gives for the sequence cut into `chunks`, and the state after it."""
    outputs, start = [], 0
    for size in chunks:
        here = slice(start, start + size)
        part = None if valid is None else valid[:, here]
        out, state = network.step(x[:, here], valid=part, state=state, in_place=in_place)
        outputs.append(out)
        start += size
    return torch.cat(outputs, 1), state
