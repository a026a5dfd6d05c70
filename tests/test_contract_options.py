"""Options that change what a mechanism computes keep the contract too, where no other file tests them."""

import pytest
from variants import variant

from subquad import catalog
from subquad.testing import contract
from subquad.testing.mechanism import cost

OPTIONS = [
    ("hedgehog", {"normalise": True}),
    ("hedgehog", {"halves": True}),
    ("retention", {"form": "fla"}),
    ("lightning", {"layers": 2}),
    ("sinks", {"learnt": True, "normalised": False}),
    ("sinks", {"learnt": True, "normalised": False, "sinks": 0}),
    ("delta", {"swish_values": False}),
]
CASES = [
    (name, options, check)
    for name, options in OPTIONS
    for check in contract(variant(catalog()[name], **options))
    if not hasattr(check, "slow") and check.__module__ != cost.__name__  # costs are those of the defaults
]


def label(value):
    if isinstance(value, dict):
        return ",".join(f"{name}={option}" for name, option in value.items())
    return value if isinstance(value, str) else value.__name__.removeprefix("check_")


@pytest.mark.parametrize(("name", "options", "check"), CASES, ids=label)
def test_every_option_keeps_the_contract(name, options, check):
    check(variant(catalog()[name], **options))
