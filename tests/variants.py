"""Mechanisms with other defaults, for the contract to judge."""

from dataclasses import replace
from typing import Any

from subquad.mechanism import Mechanism


def variant(
    cls: type[Mechanism], *, limit: dict[str, Any] | None = None, normalised: bool = True, **options: Any
) -> type[Mechanism]:
    """The mechanism with these options beside those that suit a test, under a name that it can be pickled by.

    `limit`: those that make it softmax attention beside these; None where none do.
    `normalised`: whether weights still sum to one, if they did.
    """
    name, tiny = f"{cls.__name__}{len(globals())}", {**cls.traits.tiny, **options}
    limit = None if limit is None else {**tiny, **limit}
    traits = replace(cls.traits, tiny=tiny, limit=limit, normalised=cls.traits.normalised and normalised)
    globals()[name] = type(name, (cls,), {"traits": traits, "__module__": __name__})
    return globals()[name]
