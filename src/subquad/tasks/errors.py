"""What is said when data cannot be used: one message that names the place and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class DataError(ValueError):
    """The data given cannot be used as they are; the message names file, column and first rows."""


def suggestion(given: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    if near := get_close_matches(given, names, n=1):
        return f"did you mean {near[0]!r}?"
    return f"there are {', '.join(map(repr, names))}" if names else "there are none"
