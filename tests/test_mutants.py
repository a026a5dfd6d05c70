"""The checks are themselves checked: plant a bug, and the check that is for it must see it.

Each mutant is a copy of the package with one piece of text replaced in one definition, wherever that stands,
run in a process of its own.
"""

import shutil
from pathlib import Path

import pytest
from mutants import MUTANTS
from mutants.mutant import plant
from trial import trial

import subquad
from subquad.registry import find
from subquad.testing import contract

PACKAGE = Path(subquad.__file__).parent
ONLY_CODE = shutil.ignore_patterns("__pycache__", "*.so")


def test_every_bug_has_one_place(tmp_path):
    for number, mutant in enumerate(MUTANTS):
        copy = tmp_path / str(number)
        shutil.copytree(PACKAGE, copy, ignore=ONLY_CODE)
        plant(mutant, copy)
        shutil.rmtree(copy)


def test_every_bug_names_a_check_of_its_mechanism():
    for mutant in MUTANTS:
        assert f"check_{mutant.check}" in {check.__name__ for check in contract(find(mutant.mechanism))}, (
            mutant
        )


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.mechanism}: {m.bug}")
def test_a_planted_bug_is_caught(mutant, tmp_path):
    copy = tmp_path / "subquad"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    plant(mutant, copy)
    passed, reason = trial(tmp_path, mutant.mechanism, mutant.check)
    assert not passed, "survived"
    assert reason
