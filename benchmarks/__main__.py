"""The command: measure, print the table, and fail where a gate is missed."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import document, suite, verdicts
from subquad.files import write_whole

EPILOG = """\
Exit status: 0 every gate passed, 1 a gate was missed, 2 bad usage.
A gate is 80 % of a target's ratio, at one thread.
Run it where `benchmarks/` is, with the peers installed: pip install -e ".[compare,peers]"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        print(*suite.names(), sep="\n")
        return 0
    unknown = [start for start in options.only if not any(name.startswith(start) for name in suite.names())]
    if unknown:
        parser().error(f"no row begins with {unknown[0]!r}; --list tells which there are")
    if options.read:
        results = json.loads(options.read.read_text())
    else:
        threads = tuple(dict.fromkeys((1, *options.threads)))
        results = suite.run(
            options.only,
            quick=options.quick,
            threads=threads,
            say=say,
            save=partial(save, options.json),
            before=json.loads(options.json.read_text()) if options.json and options.json.exists() else {},
        )
        save(options.json, results)
    if options.write:
        write_whole(options.write, document.page(results).encode())
    print(document.report(results))
    failed = verdicts.failed(verdicts.verdicts(results), verdicts.claims(results))
    for line in failed:
        say(line)
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "python -m benchmarks",
        description="subquad beside PyTorch's fused softmax and other packages: time, memory, targets.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--quick", action="store_true", help="short sequences, few rounds: about ten minutes"
    )
    options.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="rows and claims whose names begin so"
    )
    options.add_argument(
        "--threads", nargs="+", type=int, default=[1, 2], help="one thread is always measured (default: 1 2)"
    )
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="save what was measured, and go on where FILE stops"
    )
    options.add_argument("--read", type=Path, metavar="FILE", help="measure nothing, read what --json saved")
    options.add_argument("--write", type=Path, metavar="FILE", help="write the page, docs/performance.md")
    options.add_argument("--list", action="store_true", help="the names of all rows and claims")
    return options


def save(path: Path | None, results: dict[str, Any]) -> None:
    if path:
        write_whole(path, json.dumps(results, indent=1).encode())


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
