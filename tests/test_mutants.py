"""The checks are themselves checked: plant a bug, and the check that is for it must see it.

Each mutant is a copy of the package with one piece of text replaced, run in a process of its own.
"""

import shutil
from pathlib import Path

import pytest
from mutants import MUTANTS
from trial import trial

import subquad

PACKAGE = Path(subquad.__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.mechanism}: {m.bug}")
def test_a_planted_bug_is_caught(mutant, tmp_path):
    copy = tmp_path / "subquad"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / mutant.file).read_text()
    assert mutant.old in source, f"{mutant.file} no longer holds {mutant.old!r}: plant the bug anew"
    (copy / mutant.file).write_text(source.replace(mutant.old, mutant.new))
    passed, reason = trial(tmp_path, mutant.mechanism, mutant.check)
    assert not passed, "survived"
    assert reason
