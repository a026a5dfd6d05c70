"""Every whole layer, ours and plugged in, keeps the contract of layers."""

from pathlib import Path

import pytest
from isolated import run_isolated

import subquad
from subquad.nn.layers.named import layer_catalog
from subquad.testing import layer_contract

CASES = [(name, check) for name, cls in layer_catalog().items() for check in layer_contract(cls)]


def label(value):
    return value if isinstance(value, str) else value.__name__.removeprefix("check_")


@pytest.mark.parametrize(("name", "check"), [c for c in CASES if not hasattr(c[1], "slow")], ids=label)
def test_contract(name, check):
    check(layer_catalog()[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(layer_catalog()))
def test_compiles_whole(name):
    passed, reason = run_isolated(Path(subquad.__file__).parents[1], name, "layers_compile")
    assert passed, reason
