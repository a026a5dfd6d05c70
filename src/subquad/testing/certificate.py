"""A certificate, line by line: which checks a mechanism or a layer passed, and what failed and why."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from subquad.mechanism import Mechanism
from subquad.nn.layers.layer import Layer
from subquad.testing.layer.contract import layer_contract
from subquad.testing.mechanism.contract import contract


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One line of a certificate."""

    check: str  # what was checked, as its function is named
    claim: str  # what holds if it passed, the first line of its docstring
    passed: bool
    reason: str  # empty if it passed
    seconds: float


def certify(cls: type[Mechanism] | type[Layer]) -> Iterator[Outcome]:
    """Run every check that applies to `cls`, one after the other, whatever fails."""
    for check in checks_of(cls):
        yield outcome(check, cls)


def checks_of(cls: type[Mechanism] | type[Layer]) -> Iterator[Callable[[Any], None]]:
    """The checks that apply to a mechanism or a layer."""
    return layer_contract(cls) if issubclass(cls, Layer) else contract(cls)


def outcome(check: Callable[[Any], None], subject: Any) -> Outcome:
    """Run one check. Whatever it raises is a failure with its reason."""
    start, reason = time.perf_counter(), ""
    try:
        check(subject)
    except AssertionError as error:
        reason = one_line(str(error)) or "failed"
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(str(error))}"
    return Outcome(
        check=check.__name__.removeprefix("check_"),
        claim=(check.__doc__ or "").strip().splitlines()[0].rstrip("."),
        passed=not reason,
        reason=reason,
        seconds=time.perf_counter() - start,
    )


def one_line(message: str) -> str:
    """A message of several lines as one, at most 300 characters."""
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    return line if len(line) <= 300 else line[:297] + "…"
