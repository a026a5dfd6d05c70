"""Checks of types at run time, at their full price only where shapes are annotated.

jaxtyping binds and checks the arguments of each call anew, to know what `b` and `t` are in it. Most functions
annotate no array: those beartype checks alone.
"""

import inspect
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping


def has_arrays(hint: Any) -> bool:
    """Whether shapes stand in an annotation, or may: a text is not read."""
    if isinstance(hint, str) or (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)):
        return True
    return any(map(has_arrays, get_args(hint)))


def check_shapes_where_there_are_any(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyping.jaxtyped` as its import hook calls it, and beartype for functions without arrays."""

    def decorator(*, typechecker: Any) -> Callable[[Any], Any]:
        shaped = jaxtyped(typechecker=typechecker)

        def decorate(decorated: Any) -> Any:
            if inspect.isfunction(decorated) and not any(map(has_arrays, decorated.__annotations__.values())):
                return typechecker(decorated)
            return shaped(decorated)

        return decorate

    return decorator
