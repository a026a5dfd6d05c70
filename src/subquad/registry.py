"""Mechanisms by name: those that come with the package, and those that others register (`plugins.py`)."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeGuard

from subquad.mechanism import Dims, Mechanism
from subquad.mechanisms import BUILTIN
from subquad.plugins import collect, hint, look_up


@cache
def catalog() -> Mapping[str, type[Mechanism]]:
    """Every known mechanism by name. A plug-in that fails to load warns, and the rest works."""
    return collect("mechanism", BUILTIN, accepts=is_mechanism, name=lambda cls: cls.traits.name)


def is_mechanism(thing: object) -> TypeGuard[type[Mechanism]]:
    return isinstance(thing, type) and issubclass(thing, Mechanism)


def find(name: str) -> type[Mechanism]:
    """The mechanism called `name`, or `ValueError` with the nearest known."""
    return look_up("mechanism", name, catalog())


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
