"""A few of the faults of `python -m faults`, by which nothing may be lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
KINDS = ["killed in a write", "full disk", "out of memory", "damaged checkpoint", "damaged model"]
OF_THE_COMMAND = ["malformed input", "damaged cache"]  # others take longer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and processes are Linux's")


def test_nothing_is_lost_by_a_few_faults_of_each_kind():
    assert lost_by(KINDS) == dict.fromkeys(KINDS, "0")


@pytest.mark.slow
def test_nothing_is_lost_by_a_few_faults_of_the_command_line():
    assert lost_by(OF_THE_COMMAND) == dict.fromkeys(OF_THE_COMMAND, "0")


def lost_by(kinds: list[str]) -> dict[str, str]:
    """What a disturbed comparison of each kind lost."""
    path = os.pathsep.join([*filter(None, sys.path), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "faults", "--comparisons", "1", "--only", *kinds],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    return {row[0]: row[3] for row in rows}
