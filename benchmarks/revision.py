"""Which code was measured."""

import subprocess


def commit() -> str:
    """Of the working copy, and whether it has been changed since."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
