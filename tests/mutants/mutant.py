"""What a planted bug is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    mechanism: str
    check: str  # the check that must catch it
    bug: str
    file: str
    old: str
    new: str
