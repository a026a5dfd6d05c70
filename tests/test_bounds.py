"""Options are held against the types and bounds that constructors declare."""

import re
from typing import TYPE_CHECKING, Annotated

import pytest

from subquad import Dims, build, catalog, options
from subquad.bounds import Bound, Count, require_bounds
from subquad.mechanisms.linear import LinearAttention

if TYPE_CHECKING:
    from pathlib import Path

DIMS = Dims(heads=2, head_dim=4, max_len=24)
REFUSED = [
    ("local", {"width": 0}, "'local': width must be at least 1, not 0"),
    ("local", {"width": 2.5}, "'local': width must be a whole number, not 2.5"),
    ("local", {"width": 2**63}, f"'local': width must be a number of at most 64 bits, not {2**63}"),
    ("local", {"width": "8"}, "'local': width must be a whole number, not '8'"),
    ("local", {"width": True}, "'local': width must be a whole number, not True"),
    ("bigbird", {"window": 4}, "'bigbird': window must be odd and at least 1, not 4"),
    ("delta", {"swish_values": 1}, "'delta': swish_values must be True or False, not 1"),
    ("gated-linear", {"tau": float("nan")}, "'gated-linear': tau must be a positive number, not nan"),
    ("infinity-gpt2", {"tau": 1}, "'infinity-gpt2': tau must be between 0 and 1, both excluded, not 1"),
    ("retention", {"form": "flax"}, "'retention': form must be one of torchscale, fla, not 'flax'"),
    (
        "glu-1",
        {"activation": "relu"},
        "'glu-1': activation must be one of softplus, gelu, sigmoid, not 'relu'",
    ),
]


@pytest.mark.parametrize(("name", "chosen", "message"), REFUSED)
def test_an_option_out_of_bounds_is_refused_with_what_is_possible(name, chosen, message):
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        build(name, DIMS, causal=catalog()[name].traits.causal is not None, **chosen)


@pytest.mark.parametrize("name", catalog())
def test_defaults_are_within_their_own_bounds(name):
    cls = catalog()[name]
    require_bounds(name, cls.__init__, options(cls))


class Mine(LinearAttention):
    """Of another package."""

    def __init__(self, dims: Dims, *, causal: bool, most: "Count" = 2, where: "Path | None" = None) -> None:
        super().__init__(dims, causal=causal)


def test_a_type_that_only_type_checkers_import_keeps_nobody_from_building():
    Mine(DIMS, causal=True, most=1)


def test_such_a_type_lifts_no_bound_of_another_option():
    with pytest.raises(ValueError, match="'linear': most must be at least 1, not 0"):
        Mine(DIMS, causal=True, most=0)


class Even(LinearAttention):
    """Of another package, with a bound of its own."""

    def __init__(
        self, dims: Dims, *, causal: bool, pairs: Annotated[int, Bound("even", lambda n: n % 2 == 0)] = 2
    ) -> None:
        super().__init__(dims, causal=causal)


def test_a_mechanism_of_another_package_may_have_bounds_of_its_own():
    with pytest.raises(ValueError, match="'linear': pairs must be even, not 3"):
        Even(DIMS, causal=True, pairs=3)
