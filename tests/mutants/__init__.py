"""Bugs to plant, family by family."""

from mutants import (
    content,
    exact,
    kernel,
    layers,
    low_rank,
    memory,
    mixtures,
    performer,
    recurrent,
    relatives,
    setups,
    sharing,
    sparse,
    transforms,
    triton,
    waiting,
)

FAMILIES = (
    *(exact, kernel, performer, relatives, sparse, low_rank, content, recurrent, memory),
    *(mixtures, setups, sharing, transforms, waiting, layers),
)
MUTANTS = [mutant for family in FAMILIES for mutant in family.MUTANTS]
KERNEL_MUTANTS = triton.MUTANTS
