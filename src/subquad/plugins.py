"""Finding by name what packages register: mechanisms, tasks and executors alike.

A package adds its own with an entry point, and needs no import of ours to be found:

    [project.entry-points."subquad.mechanisms"]
    mine = "my_package:MyAttention"
"""

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import distributions, entry_points
from types import MappingProxyType
from typing import TypedDict, TypeVar

GROUP = "subquad."  # how the names of our groups of entry points begin

Thing = TypeVar("Thing")


class Plugin(TypedDict):
    """What a package registers, as JSON.

    kind: "mechanism", "layer", "task", "executor", "section" or "backend".
    name: of the entry point.
    """

    kind: str
    name: str
    package: str
    version: str


def registered() -> list[Plugin]:
    """All that the installed packages register; none of it is loaded."""
    found = {
        (entry.group.removeprefix(GROUP).removesuffix("s"), entry.name, each.name, each.version)
        for each in distributions()
        for entry in each.entry_points
        if entry.group.startswith(GROUP)
    }
    return [
        Plugin(kind=kind, name=name, package=package, version=version)
        for kind, name, package, version in sorted(found)
    ]


def collect(
    kind: str,
    builtin: Iterable[Thing],
    *,
    accepts: Callable[[object], bool],
    name: Callable[[Thing], str],
) -> Mapping[str, Thing]:
    """Everything of one kind by name: ours, and what is registered under `subquad.KINDs`.

    kind: "mechanism", "task" or "executor".
    builtin: those that come with the package.
    accepts: whether what an entry point leads to is of this kind.
    name: what users type to get it.

    An entry point that fails to load, or leads to something else, warns, and the rest works. Two of one
    name are a `ValueError`.
    """
    known = {name(thing): thing for thing in builtin}
    for entry in entry_points(group=f"{GROUP}{kind}s"):
        try:
            thing = entry.load()
        except Exception as error:
            warnings.warn(f"{kind} {entry.name!r} from {entry.value!r} not loaded: {error}", stacklevel=3)
            continue
        if not accepts(thing):
            warnings.warn(
                f"{entry.name!r} from {entry.value!r} is not a {kind.capitalize()}: ignored", stacklevel=3
            )
        elif known.setdefault(name(thing), thing) is not thing:
            raise ValueError(f"two {kind}s are named {name(thing)!r}: {known[name(thing)]} and {thing}")
    return MappingProxyType(known)


def look_up(kind: str, name: str, known: Mapping[str, Thing]) -> Thing:
    """The one called `name`, or `ValueError` with the nearest known."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}{hint(name, known)}")
    return known[name]


def hint(name: str, known: Iterable[str]) -> str:
    """What a message adds about a name that is not known."""
    known = sorted(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else "; it takes none"
