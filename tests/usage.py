"""What bad usage of the command line looks like."""

from collections.abc import Callable
from pathlib import Path


def assert_refused(
    call: Callable[..., tuple[int, str, str]], folder: Path, arguments: str, message: str
) -> None:
    """One line that says what is wrong, status 2, and nothing in the current folder."""
    status, out, err = call(*arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith("subquad: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(folder.iterdir()) == []
