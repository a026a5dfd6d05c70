"""A few of the faults of `python -m faults`, by which nothing may be lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
KINDS = ["killed in a write", "full disk", "out of memory", "damaged checkpoint", "damaged model"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="faults are put into processes that are forked")
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_nothing_is_lost_by_a_few_faults_of_each_kind():
    path = os.pathsep.join([*filter(None, sys.path), str(TESTS)])
    command = [sys.executable, "-W", "ignore", "-m", "faults", "--comparisons", "1", "--only", *KINDS]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == KINDS
    assert {row[3] for row in rows} == {"0"}
