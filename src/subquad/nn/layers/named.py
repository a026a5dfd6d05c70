"""Whole layers by name: those that come with the package, and those that others register (`plugins.py`).

A layer's name stands where a mechanism's does: `EncoderConfig(attention="conformer")`. To add one: write its
file, then name it here; or, in a package of your own, register it:

    [project.entry-points."subquad.layers"]
    mine = "my_package:MyLayer"
"""

from collections.abc import Mapping
from functools import cache
from typing import TypeGuard

from subquad import registry
from subquad.mechanism import Dims, Mechanism, Traits
from subquad.nn.blocks import TransformerBlock
from subquad.nn.layers.conformer import Conformer
from subquad.nn.layers.informer import InformerDecoder, InformerEncoder
from subquad.nn.layers.layer import Layer, LayerConfig, LayerTraits, attention, claims
from subquad.nn.layers.reversible import ReversibleBlock
from subquad.nn.layers.star_transformer import StarTransformer
from subquad.notation import Option
from subquad.plugins import collect, hint, look_up

BUILTIN = (Conformer, StarTransformer, ReversibleBlock, InformerEncoder, InformerDecoder)


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
    return look_up("mechanism", name, {**registry.catalog(), **layer_catalog()})


def traits_of(name: str, chosen: Mapping[str, Option]) -> Traits | LayerTraits:
    """What the mechanism or layer of that name claims, with these of its options."""
    cls = find_named(name)
    return claims(cls, chosen) if is_layer(cls) else cls.traits


def require_buildable(
    name: str, chosen: Mapping[str, Option], *, heads: int, head_dim: int, max_len: int | None, causal: bool
) -> None:
    """Raise `ValueError` where the mechanism or layer of that name cannot be built so."""
    if is_layer(find_named(name)):
        dim = heads * head_dim
        build_layer(name, chosen, LayerConfig(dim=dim, heads=heads, max_len=max_len, causal=causal))
    else:
        dims = Dims(heads=heads, head_dim=head_dim, max_len=max_len)
        registry.build(name, dims, causal=causal, **chosen)


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
