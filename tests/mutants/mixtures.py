"""Bugs planted in what splits heads among mechanisms."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "softmax&local:width=3",
        "matches_definition",
        "every member gets the first heads",
        "Mixture._split",
        "slice(first, first := first + member.dims.heads)",
        "slice(0, member.dims.heads)",
    ),
    Mutant(
        "local:width=3&taylor:width=3",
        "matches_definition",
        "a narrower member takes the last columns",
        "Mixture._split",
        "heads, :, :w]",
        "heads, :, -w:]",
    ),
    Mutant(
        "softmax&local:width=3",
        "steps_in_place",
        "members make their states anew",
        "Mixture.step",
        "state=each, in_place=in_place)",
        "state=each)",
    ),
    Mutant(
        "softmax&local:width=3",
        "copying_and_pickling",
        "a copy goes by the class, which has no name",
        "Mixture.__reduce__",
        "return _empty, (self.shares,), self.__getstate__()",
        "return super().__reduce__()",
    ),
]
