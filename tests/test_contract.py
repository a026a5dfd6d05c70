"""Every mechanism, ours and plugged in, keeps the contract."""

import subprocess
import sys
from pathlib import Path

import pytest
from isolated import run_isolated
from mechanism_names import ONE_OF_EACH_FILE

import subquad
from subquad import catalog
from subquad.testing import contract

CASES = [(name, check) for name, cls in catalog().items() for check in contract(cls)]


def label(value):
    return value if isinstance(value, str) else value.__name__.removeprefix("check_")


@pytest.mark.parametrize(("name", "check"), [c for c in CASES if not hasattr(c[1], "slow")], ids=label)
def test_contract(name, check):
    check(catalog()[name])


ONE_OF_EACH_FAMILY = {catalog()[name].traits.family: name for name in ONE_OF_EACH_FILE}.values()


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH_FILE)
def test_compiles_whole(name):
    # in a process of its own: the tests' run-time type checks are no part of what users compile. One of each
    # family goes down to machine code; of the others the graph and its gradients, in a quarter of the time
    compiler = {} if name in ONE_OF_EACH_FAMILY else {"CXX": "none"}
    passed, reason = run_isolated(Path(subquad.__file__).parents[1], name, "compiles", **compiler)
    assert passed, reason


@pytest.mark.slow
@pytest.mark.parametrize("check", ["exports_with_dynamic_lengths", "compiles_with_dynamic_lengths"])
@pytest.mark.parametrize("name", ONE_OF_EACH_FILE)
def test_one_graph_serves_all_lengths(name, check):
    passed, reason = run_isolated(Path(subquad.__file__).parents[1], name, check)
    assert passed, reason


EXPORTED = """
import sys
from subquad.registry import find
from subquad.testing.mechanism.cases import each_form
from subquad.testing.mechanism.graphs import exported

for name in sys.argv[1:]:
    for mechanism in each_form(find(name)):
        print(name, len(list(exported(mechanism.eval()))))
"""


@pytest.mark.slow
def test_only_the_infinity_formers_refuse_to_be_exported_for_all_lengths():
    names = [name for name in ONE_OF_EACH_FILE if not name.startswith("infinity")]
    command = [sys.executable, "-c", EXPORTED, *names, "infinity"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    refused = {line.split()[0] for line in told.stdout.splitlines() if not line.endswith(" 2")}
    assert refused == {"infinity"}
