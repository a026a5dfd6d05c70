"""Sparse patterns: which queries see which keys, as values with an algebra, and attention that runs them."""

from subquad.patterns.atoms import (
    Columns,
    Dilated,
    Fixed,
    Global,
    Local,
    Random,
    Ring,
    Rows,
    Strided,
    Summaries,
)
from subquad.patterns.pattern import CAUSAL, Blocks, Intersection, Pattern, PerHead, Union
from subquad.patterns.pattern_attention import attend
from subquad.patterns.rows import attend_rows

__all__ = [
    "CAUSAL",
    "Blocks",
    "Columns",
    "Dilated",
    "Fixed",
    "Global",
    "Intersection",
    "Local",
    "Pattern",
    "PerHead",
    "Random",
    "Ring",
    "Rows",
    "Strided",
    "Summaries",
    "Union",
    "attend",
    "attend_rows",
]
