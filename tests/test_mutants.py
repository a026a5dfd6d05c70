"""The checks are themselves checked: plant a bug, and the check that is for it must see it.

Each mutant is a copy of the package with one piece of text replaced, run in a process of its own.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

import subquad

PACKAGE = Path(subquad.__file__).parent

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import subquad
assert subquad.__file__.startswith(sys.argv[1]), subquad.__file__
from subquad.registry import find
from subquad.testing import certificate, contract
cls = find(sys.argv[2])
check, = (check for check in contract(cls) if check.__name__ == "check_" + sys.argv[3])
found = certificate.outcome(check, cls)
print(found.reason)
sys.exit(0 if found.passed else 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.mechanism}: {m.bug}")
def test_a_planted_bug_is_caught(mutant, tmp_path):
    copy = tmp_path / "subquad"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / mutant.file).read_text()
    assert mutant.old in source, f"{mutant.file} no longer holds {mutant.old!r}: plant the bug anew"
    (copy / mutant.file).write_text(source.replace(mutant.old, mutant.new))
    command = [sys.executable, "-c", RUN, str(tmp_path), mutant.mechanism, mutant.check]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1, f"survived: {run.stdout}{run.stderr[-2000:]}"
    assert run.stdout.strip(), run.stderr[-2000:]
