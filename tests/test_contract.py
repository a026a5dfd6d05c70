"""Every mechanism, ours and plugged in, keeps the contract."""

import subprocess
import sys

import pytest

from subquad import catalog
from subquad.testing import contract

CASES = [(name, check) for name, cls in catalog().items() for check in contract(cls)]
CERTIFY_COMPILING = """
import sys
from subquad.registry import find
from subquad.testing.numerics import check_compiles
check_compiles(find(sys.argv[1]))
"""


def label(value):
    return value if isinstance(value, str) else value.__name__.removeprefix("check_")


@pytest.mark.parametrize(("name", "check"), [c for c in CASES if not hasattr(c[1], "slow")], ids=label)
def test_contract(name, check):
    check(catalog()[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", {cls.__module__: name for name, cls in catalog().items()}.values())
def test_compiles_whole(name):
    # one of each file, whose code they share, and in a process of its own: the tests' run-time type checks
    # are no part of what users compile
    run = subprocess.run([sys.executable, "-c", CERTIFY_COMPILING, name], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
