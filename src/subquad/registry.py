"""Finding mechanisms by name: the built-in ones and those that other packages register.

A package adds its own with an entry point, and needs no import of ours to be found:

    [project.entry-points."subquad.mechanisms"]
    mine = "my_package:MyAttention"
"""

import difflib
import inspect
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from subquad.mechanism import Dims, Mechanism
from subquad.mechanisms import BUILTIN


@cache
def catalog() -> Mapping[str, type[Mechanism]]:
    """Every known mechanism by name. A plug-in that fails to load warns, and the rest works."""
    found = {cls.traits.name: cls for cls in BUILTIN}
    for entry in entry_points(group="subquad.mechanisms"):
        try:
            cls = entry.load()
        except Exception as error:
            warnings.warn(f"mechanism {entry.name!r} from {entry.value!r} not loaded: {error}", stacklevel=2)
            continue
        if not (isinstance(cls, type) and issubclass(cls, Mechanism)):
            warnings.warn(f"{entry.name!r} from {entry.value!r} is not a Mechanism: ignored", stacklevel=2)
            continue
        if found.setdefault(cls.traits.name, cls) is not cls:
            raise ValueError(
                f"two mechanisms are named {cls.traits.name!r}: {found[cls.traits.name]} and {cls}"
            )
    return MappingProxyType(found)


def find(name: str) -> type[Mechanism]:
    """The mechanism called `name`, or `ValueError` with the nearest known."""
    if name not in catalog():
        raise ValueError(f"unknown mechanism {name!r}{hint(name, catalog())}")
    return catalog()[name]


def options(cls: type[Mechanism]) -> dict[str, Any]:
    """The options a mechanism takes beyond `dims` and `causal`, with their defaults."""
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


def hint(given: str, known: Iterable[str]) -> str:
    """What a message adds about a name that is not known."""
    known = sorted(known)
    if close := difflib.get_close_matches(given, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else "; it takes none"
