"""Several mechanisms within one layer, each on some of its heads, as one mechanism.

    out = [A(q_1 .. q_i, k_1 .. k_i, v_1 .. v_i), B(q_i+1 .. q_h, k_i+1 .. k_h, v_i+1 .. v_h)]

Heads do not see one another within attention: what each member promises holds of its heads, and what all of
them promise holds of the layer. Routing Transformers (arXiv:2003.05997) have local heads beside routed ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from math import gcd
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.mechanism import Dims, Mechanism, Outputs, State, Traits, Valid
from subquad.notation import Option, repeated, written
from subquad.shards import Shards


@dataclass(frozen=True)
class Share:
    """A mechanism with its options, and how many of the shares of the heads it has."""

    mechanism: type[Mechanism]
    options: tuple[tuple[str, Option], ...]
    heads: int

    @property
    def label(self) -> str:
        return written(self.mechanism.traits.name, dict(self.options))

    @property
    def traits(self) -> Traits:
        """Of the mechanism with these options, for which its limit has to be theirs."""
        traits = self.mechanism.traits
        at_limit = traits.limit is not None and traits.limit.items() <= {*self.options}
        return replace(traits, limit={} if at_limit else None)


class MixedState(NamedTuple):
    members: tuple[State, ...]


class Mixture(Mechanism):
    """Mechanisms side by side: the heads are split among them in the order and the ratio of the `shares`.

    An input that only some members take is made for all heads, and the others leave theirs; where members
    take one of different widths, it has the greatest, and each takes the first of it.
    """

    shares: ClassVar[tuple[Share, ...]]
    zeros_padding = False  # the members do, or need not

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        super().__init__(dims, causal=causal)
        name, total = self.traits.name, self.heads_multiple
        if dims.heads % total:
            raise ValueError(
                f"{name!r} splits heads into {total} shares, and {dims.heads} heads do not divide so: take a "
                f"multiple of {total}"
            )
        counts = [share.heads * dims.heads // total for share in self.shares]
        self.mixed = nn.ModuleList(
            share.mechanism(replace(dims, heads=count), causal=causal, **dict(share.options))
            for share, count in zip(self.shares, counts, strict=True)
        )
        if len(widths := {member.projections()["v"] for member in self.members()}) > 1:
            raise ValueError(f"{name!r} mixes values of widths {sorted(widths)}: take members of one width")

    def members(self) -> list[Mechanism]:
        return [member for member in self.mixed if isinstance(member, Mechanism)]

    def projections(self) -> dict[str, int]:
        widths: dict[str, int] = {}
        for member in self.members():
            for name, width in member.projections().items():
                widths[name] = max(width, widths.get(name, 0))
        return {name: widths[name] for name in self.inputs.__annotations__}

    def score_inputs(self) -> tuple[str, ...]:
        return self._shared([member.score_inputs() for member in self.members()])

    def turned_inputs(self) -> tuple[str, ...]:
        return self._shared([member.turned_inputs() for member in self.members()])

    def _shared(self, of_members: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        """Those of all members, where each has some, and all that it takes of them are its own and whole."""
        widths, every = self.projections(), {name for own in of_members for name in own}
        for member, own in zip(self.members(), of_members, strict=True):
            taken = {name: width for name, width in member.projections().items() if name in every}
            if not own or {*own} != taken.keys() or not taken.items() <= widths.items():
                return ()
        return tuple(name for name in widths if name in every)

    def definition(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        counts = [member.dims.heads for member in self.members()]
        split = zip(*(x.split(counts, 1) for x in inputs), strict=True)
        outputs = []
        for member, heads in zip(self.members(), split, strict=True):
            named = dict(zip(self.projections(), heads, strict=True))
            own = [named[name][..., :width] for name, width in member.projections().items()]
            outputs.append(member.definition(*own, valid=valid))
        return torch.cat(outputs, 1)

    def forward(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        return torch.cat([m(**x, valid=valid) for m, x in self._split(inputs)], 1)

    def sharded(self, *inputs: Tensor, valid: Valid | None = None, shards: Shards) -> Outputs:
        if self.traits.exchange is None:
            return super().sharded(*inputs, valid=valid, shards=shards)
        return torch.cat([m.sharded(**x, valid=valid, shards=shards) for m, x in self._split(inputs)], 1)

    def step(
        self,
        *inputs: Tensor,
        valid: Valid | None = None,
        state: MixedState | None = None,
        in_place: bool = False,
    ) -> tuple[Outputs, MixedState]:
        states = [None] * len(self.shares) if state is None else state.members
        steps = [
            m.step(**x, valid=valid, state=each, in_place=in_place)
            for (m, x), each in zip(self._split(inputs), states, strict=True)
        ]
        return torch.cat([out for out, _ in steps], 1), MixedState(tuple(after for _, after in steps))

    def reserve(self, state: MixedState, tokens: int) -> MixedState:
        pairs = zip(self.members(), state.members, strict=True)
        return MixedState(tuple(member.reserve(each, tokens) for member, each in pairs))

    def penalty(self) -> Float[Tensor, ""]:
        """The mean of the members' own, by their heads."""
        terms = (m.penalty() * (m.dims.heads / self.dims.heads) for m in self.members())
        return sum(terms, start=torch.zeros(()))

    def update(self) -> None:
        for member in self.members():
            member.update()

    def redraw(self, *, generator: torch.Generator) -> None:
        for member in self.members():
            member.redraw(generator=generator)

    def tie(self, first: Mechanism) -> None:
        if isinstance(first, type(self)):
            for ours, theirs in zip(self.members(), first.members(), strict=True):
                ours.tie(theirs)

    def __reduce__(self) -> tuple[Any, ...]:  # its class has no name by which it could be pickled
        return _empty, (self.shares,), self.__getstate__()

    def _split(self, inputs: tuple[Tensor, ...]) -> Iterator[tuple[Mechanism, dict[str, Tensor]]]:
        """Each member, with its heads of its inputs."""
        named, first = dict(zip(self.projections(), inputs, strict=True)), 0
        for member in self.members():
            heads = slice(first, first := first + member.dims.heads)
            yield member, {name: named[name][:, heads, :, :w] for name, w in member.projections().items()}


@cache
def mix_heads(shares: tuple[Share, ...]) -> type[Mixture]:
    """The mechanism that splits heads so. Raises `ValueError` where members have no form in common."""
    divisor = reduce(gcd, (share.heads for share in shares))
    shares = tuple(replace(share, heads=share.heads // divisor) for share in shares)
    name = "&".join(repeated(share.label, share.heads) for share in shares)
    traits = common_traits(name, [share.traits for share in shares])
    shapes: dict[str, Any] = {name: None for name in "qkv"}  # which come first, as in all mechanisms
    for share in reversed(shares):
        shapes |= share.mechanism.inputs.__annotations__
    inputs = [(name, shape) for name, shape in shapes.items() if shape is not None]
    return type(
        "Mixture",
        (Mixture,),
        {
            "__module__": __name__,
            "__doc__": Mixture.__doc__,
            "traits": traits,
            "shares": shares,
            "heads_multiple": sum(share.heads for share in shares),
            "inputs": NamedTuple("MixedInputs", inputs),
        },
    )


def common_traits(name: str, every: Sequence[Traits]) -> Traits:
    """What all of them claim, under that name, with the greatest of their costs.

    Raises `ValueError` where there is no form that all have.
    """
    bidirectional = all(traits.bidirectional for traits in every)
    causal = {traits.causal for traits in every}
    states = {traits.state for traits in every}
    exchanges = {traits.exchange for traits in every}
    if not bidirectional and None in causal:
        one = next(traits.name for traits in every if not traits.bidirectional)
        other = next(traits.name for traits in every if traits.causal is None)
        raise ValueError(
            f"{name!r} has no form: {one!r} is causal alone and {other!r} bidirectional alone, so that no "
            "network takes both: leave one of them out"
        )
    family = every[0].family if len({traits.family for traits in every}) == 1 else "other"
    return Traits(
        name=name,
        paper=", ".join(dict.fromkeys(traits.paper for traits in every)),
        family=family,
        bidirectional=bidirectional,
        causal=None if None in causal else "values" if "values" in causal else "strict",
        cross=all(traits.cross for traits in every),
        state=None if None in causal | states else "growing" if "growing" in states else "bounded",
        cost=max(traits.cost for traits in every),
        normalised=all(traits.normalised for traits in every),
        limit={} if all(traits.limit == {} for traits in every) else None,
        limit_tol=max(traits.limit_tol for traits in every),
        exchange=next((most for most in (None, "keys", "states", "edges") if most in exchanges), None),
    )


def _empty(shares: tuple[Share, ...]) -> Mixture:
    """A mixture that has nothing yet, for pickling to fill."""
    cls = mix_heads(shares)
    return cls.__new__(cls)
