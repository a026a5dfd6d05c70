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
@pytest.mark.parametrize("name", ONE_OF_EACH_FILE)
def test_a_few_compiled_graphs_serve_all_lengths(name):
    passed, reason = run_isolated(Path(subquad.__file__).parents[1], name, "compiles_with_dynamic_lengths")
    assert passed, reason


EXPORTED = """
import sys
from subquad.registry import find
from subquad.testing.mechanism import graphs

exported = graphs.exported

def counted(mechanism):
    programs = list(exported(mechanism))
    print(name, len(programs), flush=True)
    return programs

graphs.exported = counted
for name in sys.argv[1:]:
    graphs.check_exports_with_dynamic_lengths(find(name))
"""


@pytest.mark.slow
def test_an_exported_graph_serves_all_lengths_and_only_the_infinity_formers_refuse_to_be_one():
    command = [sys.executable, "-c", EXPORTED, *ONE_OF_EACH_FILE]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-100:] + told.stderr
    refused = {line.split()[0] for line in told.stdout.splitlines() if not line.endswith(" 2")}
    assert refused == {name for name in ONE_OF_EACH_FILE if name.startswith("infinity")}
