"""What a whole layer is: all that stands between two sequences of hidden states, under one name.

A mechanism mixes tokens and leaves the rest to `TransformerBlock`. A layer of this kind owns the rest too:
what it adds up, normalises and convolves, and whether there is a mechanism inside at all.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import nn

from subquad.mechanism import Mechanism, State, Traits, bounded
from subquad.nn.attention_layer import AttentionLayer
from subquad.nn.multihead import Causal, MultiheadAttention
from subquad.nn.sequence import Sequence
from subquad.notation import Option, read, read_options
from subquad.registry import find, options

INSIDE = "inside"  # the option that writes the mechanism inside a layer


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What a network says to each of its layers.

    dim, heads, mlp_ratio, dropout: as `ModelConfig` has them.
    causal, kv_heads, scale, max_len: as `MultiheadAttention` has them.
    rotary: whether attention turns queries and keys with their positions.
    index, depth: the layer's number, from 0, and how many there are.
    """

    dim: int
    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    causal: Causal = False
    rotary: bool = False
    kv_heads: int | None = None
    scale: float | None = None
    max_len: int | None = None
    index: int = 0
    depth: int = 1

    @property
    def hidden(self) -> int:
        """The hidden width of the network for each token."""
        return round(self.dim * self.mlp_ratio)


@dataclass(frozen=True, kw_only=True)
class LayerTraits:
    """What a whole layer claims. `subquad.testing` checks every claim.

    Of a layer with a mechanism inside these are claims for the best that one can put there: see `around`.

    name: what users type.
    paper: "arXiv:2005.08100".
    bidirectional, causal, state, cost: as in `Traits`.
    keeps_length: whether as many tokens go out as came in.
    recomputes: whether the backward pass makes activations anew, so that memory does not grow with depth.
    checked: options, one set after another, with which the checks build it; they suit 24 tokens.
    """

    name: str
    paper: str
    bidirectional: bool = True
    causal: Literal["strict", "values"] | None = None
    state: Literal["bounded", "growing"] | None = None
    cost: float = 1.0
    keeps_length: bool = True
    recomputes: bool = False
    checked: tuple[Mapping[str, Option], ...] = ({},)

    def __post_init__(self) -> None:
        frozen = tuple(MappingProxyType(dict(chosen)) for chosen in self.checked)
        object.__setattr__(self, "checked", frozen)

    def as_mechanism(self) -> Traits:
        """The same claims, to be joined with those of mechanisms."""
        return Traits(
            name=self.name,
            paper=self.paper,
            family="other",
            bidirectional=self.bidirectional,
            causal=self.causal,
            state=self.state,
            cost=self.cost,
        )

    def around(self, inner: Traits) -> "LayerTraits":
        """The claims that are left with this mechanism inside."""
        return replace(
            self,
            bidirectional=self.bidirectional and inner.bidirectional,
            causal=self.causal and inner.causal,
            state=self.state and inner.state,
            cost=max(self.cost, inner.cost),
        )


class Layer(nn.Module, ABC):
    """From one sequence to the next: `layer(sequence)`, and `step` for the next chunk of a stream.

    Whatever stands at padding changes nothing at real tokens, which come out as if the padding were not
    there, wherever it is. Layers with a name have `traits`, and are built from a `LayerConfig` and their
    options, which are keyword-only scalars; those that are not what the signature says (`subquad.bounds`) are
    a `ValueError`.
    """

    traits: ClassVar[LayerTraits]
    keeps_length: bool = True  # as in `LayerTraits`
    shareable: ClassVar[bool] = False  # whether tokens meet in mechanisms alone, so that ranks can share them

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "traits" in vars(cls):
            cls.__init__ = bounded(cls.__init__)
            cls.keeps_length = cls.traits.keeps_length

    @abstractmethod
    def forward(self, sequence: Sequence) -> Sequence:
        """The sequence with new values, as wide as before.

        Its positions and padding stay, unless `traits.keeps_length` is False.
        """

    def step(
        self, sequence: Sequence, state: State | None, *, in_place: bool = False
    ) -> tuple[Sequence, State]:
        """The same for the next chunk of a stream, and the state after it: a tuple of tensors, batch first.

        state: what `step` returned for the chunk before. None: this is the first.
        in_place: the new state takes the place of `state`, as in `Mechanism.step`.
        """
        raise ValueError(f"{self.traits.name!r} cannot stream: it sees the whole sequence; use `forward`")

    def reserve(self, state: State, tokens: int) -> State:
        """The state with room for so many further tokens of each row, which steps in place fill."""
        return state

    def mechanisms(self) -> Iterator[Mechanism]:
        """Those inside, in the order in which they are used."""
        return (module.mechanism for module in self.modules() if isinstance(module, AttentionLayer))

    @classmethod
    def run(cls, layers: list["Layer"], sequence: Sequence) -> Sequence:
        """Layers of this class that follow on one another, as one."""
        return cls.run_plain(layers, sequence)

    @classmethod
    def run_plain(cls, layers: list["Layer"], sequence: Sequence) -> Sequence:
        """The same as its formula says it, whatever `run` does to save memory."""
        for layer in layers:
            sequence = layer(sequence)
        return sequence

    @classmethod
    def run_step(
        cls, layers: list["Layer"], sequence: Sequence, states: list[State | None], *, in_place: bool
    ) -> tuple[Sequence, list[State]]:
        """The same for the next chunk of a stream, and the states after it."""
        later = []
        for layer, state in zip(layers, states, strict=True):
            sequence, state = layer.step(sequence, state, in_place=in_place)
            later.append(state)
        return sequence, later


def attention(
    config: LayerConfig, name: str, chosen: Mapping[str, Any], *, rotary: bool = False
) -> MultiheadAttention:
    """Heads around the mechanism of that name with its options, as the network has them.

    rotary: queries and keys turn with their positions, though the network has others.
    """
    return MultiheadAttention(
        config.dim,
        config.heads,
        name,
        causal=config.causal,
        rotary=config.rotary or rotary,
        kv_heads=config.kv_heads,
        scale=config.scale,
        max_len=config.max_len,
        layer=config.index,
        **chosen,
    )


def attention_inside(config: LayerConfig, inside: str, *, rotary: bool = False) -> MultiheadAttention:
    """The same around the mechanism that `inside` writes: "linear", "local:width=64"."""
    return attention(config, *read_inside(inside), rotary=rotary)


def read_inside(text: str) -> tuple[str, dict[str, Option]]:
    """The name and the options of the mechanism inside a layer, as users write it; `ValueError`."""
    name, pairs = read(text)
    cls = find(name)
    return name, read_options(cls, name, text, pairs, options(cls))


def claims(cls: type[Layer], chosen: Mapping[str, Option]) -> LayerTraits:
    """What a layer claims with these of its options, of which one may name the mechanism inside."""
    inside = chosen.get(INSIDE, options(cls).get(INSIDE))
    if inside is None:
        return cls.traits
    name, _ = read_inside(str(inside))
    return cls.traits.around(find(name).traits)


def require_form(traits: LayerTraits, config: LayerConfig) -> None:
    """Raise `ValueError` where the traits rule out the form that the network asks for."""
    if config.causal and traits.causal is None:
        raise ValueError(
            f"{traits.name!r} has no causal form, since each token sees later ones: take another layer, or "
            "build it with causal=False"
        )


def require_no_attention(traits: LayerTraits, config: LayerConfig) -> None:
    """Raise `ValueError` for what the network says of attention, in a layer that has no mechanism inside."""
    for option, chosen in (("kv_heads", config.kv_heads), ("scale", config.scale)):
        if chosen is not None:
            raise ValueError(f"{traits.name!r} has attention of its own, without {option}: leave it out")
    if config.rotary:
        raise ValueError(
            f"{traits.name!r} has attention of its own, in which nothing turns: take positions other than "
            "'rotary'"
        )
