"""Mechanisms by name: those that come with the package, those of others (`plugins.py`), and mixtures.

What splits the heads of a layer among mechanisms goes by a name, too, "local:width=64&taylor", which stands
wherever a mechanism's does. A network whose layers differ is no mechanism; `network` reads it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeGuard

from subquad.mechanism import Dims, Mechanism
from subquad.mechanisms import BUILTIN
from subquad.mixture import Share, mix_heads
from subquad.notation import Option, but_defaults, heads, layers, mixes, read, read_options, repeated, written
from subquad.plugins import collect, hint, look_up


@cache
def catalog() -> Mapping[str, type[Mechanism]]:
    """Every known mechanism by name. A plug-in that fails to load warns, and the rest works."""
    return collect("mechanism", BUILTIN, accepts=is_mechanism, name=lambda cls: cls.traits.name)


def is_mechanism(thing: object) -> TypeGuard[type[Mechanism]]:
    return isinstance(thing, type) and issubclass(thing, Mechanism)


class Member(NamedTuple):
    """A mechanism with its options, and how many layers in a row have it."""

    attention: str
    options: Mapping[str, Option]
    layers: int = 1


def find(name: str) -> type[Mechanism]:
    """The mechanism called `name`, or the one that splits heads as it says; `ValueError` otherwise."""
    if len(heads(name)) > 1:
        return mix_heads(shares(name))
    if len(layers(name)) > 1:
        raise ValueError(
            f"{name!r} names mechanisms for the layers of a network: a layer takes one of them, or several "
            "with & between them, which share its heads"
        )
    return look_up("mechanism", name, catalog())


def shares(layer: str, chosen: Mapping[str, Option] | None = None) -> tuple[Share, ...]:
    """Among which mechanisms a layer splits its heads: one, with its options, where it does not."""
    parts = [Member(layer, chosen)] if chosen else [_member(*part, find) for part in heads(layer)]
    return tuple(Share(find(name), tuple(options.items()), count) for name, options, count in parts)


def network(
    attention: str, options: Mapping[str, Any] | None = None, *, known: Callable[[str], type] = find
) -> list[Member]:
    """The members of a network in their order: several where `attention` mixes them by layer, else one.

    options: those of a mechanism that is named alone. Raises `ValueError` beside the notation's own, and for
    what is not known.
    known: what a name stands for.
    """
    if not mixes(attention) and ":" not in attention:
        return [Member(attention, dict(options or {}))]
    if options:
        raise ValueError(
            f"{attention!r} has its options within it, and {', '.join(options)} beside it: write them behind "
            "the member that they are of, as in 'local:width=64*3+softmax'"
        )
    return _shortest([_member(text, count, known) for text, count in layers(attention)])


def network_name(members: Sequence[Member]) -> str:
    """What users type for it."""
    texts = [(written(name, options), count) for name, options, count in members]
    return texts[0][0] if len(texts) == 1 else "+".join(repeated(*text) for text in texts)


def options(cls: type) -> dict[str, Any]:
    """The options of a mechanism or of a whole layer, with their defaults."""
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.name != "causal"}


def build(name: str, dims: Dims, *, causal: bool, **chosen: Any) -> Mechanism:
    """Build the mechanism called `name`.

    Raises `ValueError` for an unknown name or option, with the nearest known one, for a form that the
    mechanism does not have, and for an option's value that it cannot take.
    """
    cls = find(name)
    for option in chosen:
        if option not in options(cls):
            raise ValueError(f"{name!r} has no option {option!r}{hint(option, options(cls))}")
    return cls(dims, causal=causal, **chosen)


def _member(text: str, count: int, known: Callable[[str], type]) -> Member:
    """A member as it is written, by its proper name and without options that are at their defaults."""
    if len(heads(text)) > 1:
        return Member(find(text).traits.name, {}, count)
    name, pairs = read(text)
    cls = known(name)
    defaults = options(cls)
    return Member(name, but_defaults(read_options(cls, name, text, pairs, defaults), defaults), count)


def _shortest(members: Sequence[Member]) -> list[Member]:
    """The same network in the fewest layers that repeat, neighbours that are alike as one member."""
    once = [member._replace(layers=1) for member in members for _ in range(member.layers)]
    period = next(n for n in range(1, len(once) + 1) if once == once[:n] * (len(once) // n))
    runs: list[Member] = []
    for member in once[:period]:
        if runs and runs[-1][:2] == member[:2]:
            member = member._replace(layers=runs.pop().layers + 1)
        runs.append(member)
    return runs
