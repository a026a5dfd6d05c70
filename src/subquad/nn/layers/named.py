"""Whole layers by name: those that come with the package, and those that others register (`plugins.py`).

A layer's name stands where a mechanism's does: `EncoderConfig(attention="conformer")`. To add one: write its
file, then name it here; or, in a package of your own, register it:

    [project.entry-points."subquad.layers"]
    mine = "my_package:MyLayer"
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeGuard

from subquad import registry
from subquad.mechanism import Dims, Mechanism, Traits
from subquad.mixture import common_traits
from subquad.nn.blocks import TransformerBlock
from subquad.nn.layers.augmented_convolution import AugmentedConvolution
from subquad.nn.layers.conformer import Conformer
from subquad.nn.layers.informer import InformerDecoder, InformerEncoder
from subquad.nn.layers.layer import Layer, LayerConfig, LayerTraits, attention, claims
from subquad.nn.layers.reversible import ReversibleBlock
from subquad.nn.layers.star_transformer import StarTransformer
from subquad.notation import Option, mixes
from subquad.plugins import collect, hint, look_up
from subquad.registry import Member

BUILTIN = (
    Conformer,
    AugmentedConvolution,
    StarTransformer,
    ReversibleBlock,
    InformerEncoder,
    InformerDecoder,
)


@cache
def layer_catalog() -> Mapping[str, type[Layer]]:
    """Every whole layer by name. A plug-in that fails to load warns, and the rest works."""
    known = collect("layer", BUILTIN, accepts=is_layer, name=lambda cls: cls.traits.name)
    if both := known.keys() & registry.catalog().keys():
        raise ValueError(f"{min(both)!r} names a mechanism and a layer: take one of the packages out")
    return known


def is_layer(thing: object) -> TypeGuard[type[Layer]]:
    """Whether it is the class of a whole layer, and not that of a mechanism."""
    return isinstance(thing, type) and issubclass(thing, Layer)


def find_named(name: str) -> type[Mechanism] | type[Layer]:
    """The mechanism or the whole layer called `name`, or `ValueError` with the nearest known."""
    if mixes(name):
        return registry.find(name)
    return look_up("mechanism", name, {**registry.catalog(), **layer_catalog()})


def network(attention: str, chosen: Mapping[str, Any] | None = None) -> list[Member]:
    """As `registry.network`, whose members may be whole layers, too."""
    return registry.network(attention, chosen, known=find_named)


def has_whole_layers(attention: str, chosen: Mapping[str, Any] | None = None) -> bool:
    """Whether a whole layer is named, alone or in a mixture."""
    return any(is_layer(find_named(member.attention)) for member in network(attention, chosen))


def layer_by_layer(
    attention: str, chosen: Mapping[str, Any] | None = None, *, depth: int
) -> list[tuple[str, Mapping[str, Any]]]:
    """The name and the options of each of `depth` layers, over which a mixture's own repeat.

    Raises `ValueError` unless that is a whole number of times.
    """
    members = network(attention, chosen)
    period = sum(member.layers for member in members)
    if depth % period:
        raise ValueError(
            f"{attention!r} is a network of {period} layers, and {depth} are asked for: take a depth of "
            f"{period}, {2 * period} or another multiple, or name the members of all {depth}"
        )
    once = [(name, options) for name, options, count in members for _ in range(count)]
    return once * (depth // period)


def traits_of(attention: str, chosen: Mapping[str, Any] | None = None) -> Traits | LayerTraits:
    """What a mechanism or layer claims with these of its options, or what all members of a mixture claim."""
    members = network(attention, chosen)
    every = [_claims(member) for member in members]
    if len(every) == 1:
        return every[0]
    alike = [traits.as_mechanism() if isinstance(traits, LayerTraits) else traits for traits in every]
    return common_traits(registry.network_name(members), alike)


def every_option(attention: str, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All options with their values, defaults too; in a mixture behind the name and place of their member."""
    every: list[tuple[str, dict[str, Any]]] = []
    for member in network(attention, chosen):
        if is_layer(cls := find_named(member.attention)):
            every.append((member.attention, {**registry.options(cls), **member.options}))
            continue
        for share in registry.shares(member.attention, member.options):
            own = {**registry.options(share.mechanism), **dict(share.options)}
            every.append((share.mechanism.traits.name, own))
    if len(every) == 1:
        return every[0][1]
    return {
        f"{name} {place}.{option}": value
        for place, (name, values) in enumerate(every, 1)
        for option, value in values.items()
    }


def require_buildable(
    attention: str,
    chosen: Mapping[str, Any],
    *,
    heads: int,
    head_dim: int,
    max_len: int | None,
    causal: bool,
) -> None:
    """Raise `ValueError` where a mechanism or layer, or one of a mixture's, cannot be built so."""
    for name, options, _ in network(attention, chosen):
        if is_layer(find_named(name)):
            config = LayerConfig(dim=heads * head_dim, heads=heads, max_len=max_len, causal=causal)
            build_layer(name, options, config)
        else:
            dims = Dims(heads=heads, head_dim=head_dim, max_len=max_len)
            registry.build(name, dims, causal=causal, **options)


def build_layer(name: str, chosen: Mapping[str, Option], config: LayerConfig) -> Layer:
    """The whole layer called `name`, or a Transformer block around the mechanism of that name.

    chosen: its options. Raises `ValueError` for what it cannot do.
    """
    cls = find_named(name)
    if not is_layer(cls):
        return TransformerBlock(
            attention(config, name, chosen), mlp_ratio=config.mlp_ratio, dropout=config.dropout
        )
    for option in chosen:
        if option not in registry.options(cls):
            raise ValueError(f"{name!r} has no option {option!r}{hint(option, registry.options(cls))}")
    return cls(config, **chosen)


def _claims(member: Member) -> Traits | LayerTraits:
    cls = find_named(member.attention)
    return claims(cls, member.options) if is_layer(cls) else cls.traits
