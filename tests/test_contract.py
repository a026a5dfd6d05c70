"""Every mechanism, ours and plugged in, keeps the contract."""

from pathlib import Path

import pytest
from trial import trial

import subquad
from subquad import catalog
from subquad.testing import contract

CASES = [(name, check) for name, cls in catalog().items() for check in contract(cls)]


def label(value):
    return value if isinstance(value, str) else value.__name__.removeprefix("check_")


@pytest.mark.parametrize(("name", "check"), [c for c in CASES if not hasattr(c[1], "slow")], ids=label)
def test_contract(name, check):
    check(catalog()[name])


FILES = list({cls.__module__: name for name, cls in catalog().items()}.values())  # one of each file
FAMILIES = {catalog()[name].traits.family: name for name in reversed(FILES)}  # and the first of each family


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_compiles_whole(name):
    # in a process of its own: the tests' run-time type checks are no part of what users compile. One of each
    # family goes down to machine code; of the others the graph and its gradients, in a quarter of the time
    compiler = {} if name in FAMILIES.values() else {"CXX": "none"}
    passed, reason = trial(Path(subquad.__file__).parents[1], name, "compiles", **compiler)
    assert passed, reason


@pytest.mark.slow
@pytest.mark.parametrize("check", ["exports_with_free_lengths", "compiles_once_for_several_lengths"])
@pytest.mark.parametrize("name", FILES)
def test_one_graph_serves_all_lengths(name, check):
    passed, reason = trial(Path(subquad.__file__).parents[1], name, check)
    assert passed, reason
