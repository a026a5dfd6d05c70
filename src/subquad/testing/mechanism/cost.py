"""That operations and memory grow with length as claimed: counted, so the same on every machine."""

import math
from collections.abc import Callable

from subquad.measure.flops import count_flops
from subquad.measure.memory import peak_bytes
from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import each_form, random_inputs

SLACK = 0.1  # chunks that are not full, and tensors whose size does not depend on length


def check_flop_growth(cls: type[Mechanism]) -> None:
    """Operations in products grow with length no faster than the traits say."""
    check_exponent(cls, count_flops, "work")


def check_memory_growth(cls: type[Mechanism]) -> None:
    """Peak memory grows with length no faster than the traits say."""
    check_exponent(cls, peak_bytes, "memory")


def check_exponent(cls: type[Mechanism], measure: Callable[..., int], what: str) -> None:
    for mechanism in each_form(cls):
        short, long = (measure(mechanism, **random_inputs(mechanism, length=n)) for n in (256, 512))
        exponent = math.log2(long / short)
        limit = cls.traits.cost + SLACK
        assert exponent < limit, f"{what} grows as length ** {exponent:.2f}, claimed {cls.traits.cost:g}"
