"""Reversible blocks: what goes in follows from what comes out, so that nothing in between is kept.

    y1 = x1 + attention(norm(x2)),    y2 = x2 + mlp(norm(y1))
    x2 = y2 - mlp(norm(y1)),          x1 = y1 - attention(norm(x2))

Kitaev et al.: Reformer. ICLR 2020, arXiv:2001.04451, section 3, after Gomez et al.: The Reversible Residual
Network. NIPS 2017, arXiv:1707.04585. Both streams begin as the block's input. Blocks that follow on one
another share their streams, and the last gives out the mean of the two.

The backward pass keeps the outputs of the last block and makes all others anew from them, so that memory does
not grow with depth, for some third more work. Streams are float32 at least, since in half precision a
difference is not what was added. Dropout is replayed from the state of the random numbers, and autocast as it
was. What gradients do not teach would be learnt twice, and a loss term of the mechanism's own have no graph:
mechanisms with either are refused. Under `torch.compile`, in transforms and without gradients a block is
computed as any other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from subquad.mechanism import Mechanism, State
from subquad.nn.layers.layer import Layer, LayerConfig, LayerTraits, attention_inside
from subquad.nn.positions import HiddenStates
from subquad.nn.sequence import Sequence
from subquad.torch_internals import transformed


class ReversibleBlock(Layer):
    """A Transformer block of two streams.

    inside: the mechanism that attends, with its options, as in "local:width=64".
    """

    traits = LayerTraits(
        name="reversible",
        paper="arXiv:2001.04451",
        causal="strict",
        state="bounded",
        recomputes=True,
        checked=({}, {"inside": "linear"}, {"inside": "local:width=3"}),
    )

    def __init__(self, config: LayerConfig, *, inside: str = "softmax") -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = attention_inside(config, inside)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dim)
        )
        self.dropout = nn.Dropout(config.dropout)
        require_gradients_alone(inside, self.attention.mechanism)

    def forward(self, sequence: Sequence) -> Sequence:
        return self.run([self], sequence)

    def step(
        self, sequence: Sequence, state: State | None, *, in_place: bool = False
    ) -> tuple[Sequence, State]:
        out, (state,) = self.run_step([self], sequence, [state], in_place=in_place)
        return out, state

    def reserve(self, state: State, tokens: int) -> State:
        return self.attention.mechanism.reserve(state, tokens)

    @classmethod
    def run(cls, layers: list[Layer], sequence: Sequence) -> Sequence:
        """Blocks that share their streams. No hook of one of them alone is called."""
        if torch.compiler.is_compiling() or transformed() or not torch.is_grad_enabled():
            return cls.run_plain(layers, sequence)
        parameters = [parameter for block in layers for parameter in block.parameters()]
        return mean_of_streams(sequence, *Reversing.apply(layers, sequence, *streams(sequence), *parameters))

    @classmethod
    def run_plain(cls, layers: list[Layer], sequence: Sequence) -> Sequence:
        x1, x2 = streams(sequence)
        for block in cast("list[ReversibleBlock]", layers):
            x1 = x1 + block.of_tokens(x2, sequence)
            x2 = x2 + block.of_token(x1, sequence)
        return mean_of_streams(sequence, x1, x2)

    @classmethod
    def run_step(
        cls, layers: list[Layer], sequence: Sequence, states: list[State | None], *, in_place: bool
    ) -> tuple[Sequence, list[State]]:
        x1, x2 = streams(sequence)
        later = []
        for block, state in zip(cast("list[ReversibleBlock]", layers), states, strict=True):
            normed = sequence._replace(values=block.attention_norm(x2.to(sequence.values.dtype)))
            mixed, state = block.attention.advance(normed, state, in_place=in_place)
            x1 = x1 + block.dropout(mixed)
            x2 = x2 + block.of_token(x1, sequence)
            later.append(state)
        return mean_of_streams(sequence, x1, x2), later

    def of_tokens(self, x: HiddenStates, sequence: Sequence) -> HiddenStates:
        """What attention adds."""
        normed = self.attention_norm(x.to(sequence.values.dtype))
        return self.dropout(self.attention.attend(sequence._replace(values=normed)))

    def of_token(self, x: HiddenStates, sequence: Sequence) -> HiddenStates:
        """What the network for each token adds."""
        return self.dropout(self.mlp(self.mlp_norm(x.to(sequence.values.dtype))))


def require_gradients_alone(inside: str, mechanism: Mechanism) -> None:
    """Raise `ValueError` for a mechanism that learns of tokens what gradients do not teach."""
    kind = type(mechanism)
    penalty_of_tokens = kind.penalty is not Mechanism.penalty and not kind.penalises_weights
    if penalty_of_tokens or kind.update is not Mechanism.update:
        raise ValueError(
            f"{inside!r} learns from tokens beside its gradients, and a reversible block computes them "
            "twice: put another mechanism inside, or take it without 'reversible'"
        )


def streams(sequence: Sequence) -> tuple[HiddenStates, HiddenStates]:
    """The two in which blocks begin, in float32 at least."""
    x = sequence.values.to(torch.promote_types(sequence.values.dtype, torch.float32))
    return x, x


def mean_of_streams(sequence: Sequence, x1: HiddenStates, x2: HiddenStates) -> Sequence:
    return sequence._replace(values=((x1 + x2) / 2).to(sequence.values.dtype))


class Reversing(torch.autograd.Function):
    """Blocks one after another, whose inputs the backward pass makes anew from their outputs."""

    @staticmethod
    def forward(
        ctx: Any,
        blocks: list[ReversibleBlock],
        sequence: Sequence,
        x1: HiddenStates,
        x2: HiddenStates,
        *parameters: Tensor,
    ) -> tuple[HiddenStates, HiddenStates]:
        ctx.blocks, ctx.replays = blocks, []
        ctx.sequence = sequence._replace(values=sequence.values[:, :0].detach())  # whose dtype is asked for
        device = x1.device.type
        ctx.autocast = partial(
            torch.autocast,
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        )
        for block in blocks:
            ctx.replays.append(RandomState.now(x1) if block.training else None)
            x1 = x1 + block.of_tokens(x2, ctx.sequence)
            ctx.replays.append(RandomState.now(x1) if block.training else None)
            x2 = x2 + block.of_token(x1, ctx.sequence)
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d1: HiddenStates, d2: HiddenStates) -> tuple[Tensor | None, ...]:
        y1, y2 = ctx.saved_tensors
        gradients: list[Tensor] = []
        with ctx.autocast():
            for place in reversed(range(len(ctx.blocks))):
                block, replays = ctx.blocks[place], ctx.replays[2 * place : 2 * place + 2]
                learnt = {parameter: torch.zeros_like(parameter) for parameter in block.parameters()}
                added, change = differentiated(block.of_token, y1, d2, ctx.sequence, replays[1], learnt)
                y2, d1 = y2 - added, d1 + change
                added, change = differentiated(block.of_tokens, y2, d1, ctx.sequence, replays[0], learnt)
                y1, d2 = y1 - added, d2 + change
                gradients = [*learnt.values(), *gradients]
        return None, None, d1, d2, *gradients


def differentiated(
    part: Callable[[HiddenStates, Sequence], HiddenStates],
    x: HiddenStates,
    gradient: HiddenStates,
    sequence: Sequence,
    random: "RandomState | None",
    of_parameters: dict[Tensor, Tensor],
) -> tuple[HiddenStates, HiddenStates]:
    """What a part of a block adds for `x`, made anew, and the gradient in `x` of what it added.

    gradient: in what it added.
    of_parameters: where the gradients in the block's parameters are added up; its keys are all of them.
    """
    with torch.enable_grad(), random.replayed() if random else nullcontext():
        x = x.detach().requires_grad_()
        added = part(x, sequence)
    learnt = [parameter for parameter in of_parameters if parameter.requires_grad]
    change, *changes = torch.autograd.grad(added, [x, *learnt], gradient.to(added.dtype), allow_unused=True)
    for parameter, each in zip(learnt, changes, strict=True):
        if each is not None:
            of_parameters[parameter] = of_parameters[parameter] + each
    return added.detach(), change


@dataclass(frozen=True)
class RandomState:
    """That of the random numbers, of the CPU and of whatever device there is."""

    cpu: Tensor
    devices: list[int]
    states: list[Tensor]

    @classmethod
    def now(cls, x: Tensor) -> "RandomState":
        return cls(torch.get_rng_state(), *get_device_states(x))

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within, random numbers are those that followed on this state; outside nothing has changed."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states)
            yield
