"""Bugs to plant, family by family."""

from mutants import exact, kernel, memory

MUTANTS = [*exact.MUTANTS, *kernel.MUTANTS, *memory.MUTANTS]
