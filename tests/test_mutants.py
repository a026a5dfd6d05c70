"""The checks are themselves checked: plant a bug, and the check that is for it must see it.

Each mutant is a copy of the package with one piece of text replaced in one definition, wherever that stands,
run in a process of its own.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from isolated import run_isolated
from mutants import KERNEL_MUTANTS, MUTANTS
from mutants.mutant import place, plant, read

import subquad
from subquad.nn.layers.named import find_named, layer_catalog
from subquad.testing.certificate import checks_of

PACKAGE = Path(subquad.__file__).parent
INTERPRETED = Path(__file__).parent / "interpreted"


def test_every_bug_has_one_place():
    texts = read(PACKAGE)
    for mutant in [*MUTANTS, *KERNEL_MUTANTS]:
        place(mutant, texts)


def test_every_bug_names_a_check_of_its_mechanism():
    for mutant in MUTANTS:
        names = {check.__name__ for check in checks_of(find_named(mutant.mechanism))}
        assert f"check_{mutant.check}" in names, mutant


def test_every_layer_has_bugs():
    planted = Counter(mutant.mechanism for mutant in MUTANTS)
    assert all(planted[name] >= 2 for name in layer_catalog())


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.mechanism}: {m.bug}")
def test_a_planted_bug_is_caught(mutant, tmp_path):
    copy = tmp_path / "subquad"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    plant(mutant, copy)
    passed, reason = run_isolated(tmp_path, mutant.mechanism, mutant.check)
    assert not passed, "survived"
    assert reason


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton's interpreter")
@pytest.mark.parametrize("mutant", KERNEL_MUTANTS, ids=lambda m: m.bug)
def test_a_bug_planted_in_a_kernel_is_caught(mutant, tmp_path):
    copy = tmp_path / "subquad"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    plant(mutant, copy)
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", str(INTERPRETED / mutant.test)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout[-4000:] + run.stderr[-2000:]
