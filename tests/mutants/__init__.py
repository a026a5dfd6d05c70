"""Bugs to plant, family by family."""

from mutants import (
    content,
    exact,
    kernel,
    low_rank,
    memory,
    performer,
    recurrent,
    relatives,
    sparse,
    transforms,
)

FAMILIES = (exact, kernel, performer, relatives, sparse, low_rank, content, recurrent, memory, transforms)
MUTANTS = [mutant for family in FAMILIES for mutant in family.MUTANTS]
