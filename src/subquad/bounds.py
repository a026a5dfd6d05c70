"""What an option must be, said once, where it is declared.

    Kind = Annotated[str, one_of("mean", "max")]

    def __init__(self, dims: Dims, *, causal: bool, rank: Count = 256, kind: Kind = "mean") -> None: ...

`Mechanism` and `Config` hold each option against its type and its bound. What options must be to each other
stays in the constructor.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints


@dataclass(frozen=True)
class Bound:
    """What holds of a value that is possible; its `words` end the sentence "it must be ..."."""

    words: str
    holds: Callable[[Any], bool]


def one_of(*names: str) -> Bound:
    return Bound(f"one of {', '.join(names)}", lambda name: name in names)


IN_64_BITS = Bound("a number of at most 64 bits", lambda n: -(2**63) <= n < 2**63)  # as JSON is read
AT_LEAST_ONE = Bound("at least 1", lambda n: n >= 1)

Count = Annotated[int, AT_LEAST_ONE]
CountOrZero = Annotated[int, Bound("at least 0", lambda n: n >= 0)]
EvenCount = Annotated[int, Bound("even and at least 2", lambda n: n >= 2 and n % 2 == 0)]
OddCount = Annotated[int, Bound("odd and at least 1", lambda n: n >= 1 and n % 2 == 1)]
Steps = Annotated[int, Bound("a number of steps, 0 for never", lambda n: n >= 0)]
Positive = Annotated[float, Bound("a positive number", lambda x: 0 < x < math.inf)]
PositiveOrZero = Annotated[float, Bound("zero or a positive number", lambda x: 0 <= x < math.inf)]
Share = Annotated[float, Bound("between 0 and 1", lambda x: 0 <= x <= 1)]
ShareBelowOne = Annotated[float, Bound("at least 0 and below 1", lambda x: 0 <= x < 1)]
ShareAboveZero = Annotated[float, Bound("above 0 and at most 1", lambda x: 0 < x <= 1)]
OpenShare = Annotated[float, Bound("between 0 and 1, both excluded", lambda x: 0 < x < 1)]

TYPES = {
    bool: Bound("True or False", lambda x: isinstance(x, bool)),
    int: Bound("a whole number", lambda x: isinstance(x, Integral) and not isinstance(x, bool)),
    float: Bound("a number", lambda x: isinstance(x, Real) and not isinstance(x, bool)),
    str: Bound("a string", lambda x: isinstance(x, str)),
}


def require_bounds(mechanism: str, constructor: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Raise `ValueError` for the first of the `options` that is not what the constructor's signature says."""
    for option, value in options.items():
        require(f"{mechanism!r}: {option}", value, declared_type(constructor, option))


def require(name: str, value: Any, declared: Any) -> None:
    """Raise `ValueError` for a value that is not what its declared type says."""
    for bound in bounds(declared):
        if not bound.holds(value):
            raise ValueError(f"{name} must be {bound.words}, not {value!r}")


def declared_type(constructor: Callable[..., None], option: str) -> Any:
    """What the signature says of one option; None where it says nothing that can be found at run time."""
    function: Any = inspect.unwrap(constructor)
    alone = SimpleNamespace(__annotations__={option: function.__annotations__.get(option)})
    try:
        return get_type_hints(alone, function.__globals__, include_extras=True)[option]
    except NameError:  # a type that only type checkers import
        return None


def bounds(declared: Any) -> list[Bound]:
    """Those of a type as it stands in a signature, that of its kind first."""
    type_ = getattr(declared, "__origin__", declared)
    kind = [TYPES[type_]] if type_ in TYPES else []
    size = [IN_64_BITS] if type_ is int else []
    marks = [mark for mark in getattr(declared, "__metadata__", ()) if isinstance(mark, Bound)]
    return [*kind, *size, *marks]
