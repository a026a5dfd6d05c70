"""What is said when data cannot be used: one message that names the place and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 20  # known names in a message


class DataError(ValueError):
    """The data given cannot be used as they are; the message names file, column and first rows."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or the first of them."""
    names = sorted(known)
    if near := get_close_matches(name, names, n=1):
        return f"did you mean {near[0]!r}?"
    if not names:
        return "there are none"
    listed = ", ".join(map(repr, names[:LISTED]))
    return f"there are {listed}" + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")
