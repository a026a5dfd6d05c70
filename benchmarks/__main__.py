"""The command: measure, print the table, and fail where a gate is missed or a number is wrong."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import document, verdicts
from benchmarks.cuda import document as cuda_document
from benchmarks.cuda import plan
from benchmarks.cuda import suite as cuda_suite
from benchmarks.cuda import verdicts as cuda_verdicts
from subquad.files import write_whole

EPILOG = """\
Exit status: 0 every gate passed, 1 a gate was missed or a number is wrong, 2 bad usage.
A gate is 80 % of a target's ratio, on a CPU at one thread.
Run it where `benchmarks/` is, with the peers installed: pip install -e ".[compare,peers]"
On a card every number is checked before anything is timed. Without one, --rehearse goes through the plan on
the CPU, at sizes that say nothing of speed.
"""
THREADS = (1, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    on_cuda = options.device == "cuda"
    names = [work.name for work in plan.selected(())] if on_cuda else cpu_names()
    if options.list:
        print(*names, sep="\n")
        return 0
    if (fault := misuse(options, names)) is not None:
        parser().error(fault)
    return (run_on_cuda if on_cuda else run_on_cpu)(options)


def misuse(options: argparse.Namespace, names: Sequence[str]) -> str | None:
    """What is asked for and cannot be."""
    unknown = [start for start in options.only if not any(name.startswith(start) for name in names)]
    if unknown:
        return f"no row begins with {unknown[0]!r}; --list tells which there are"
    if options.device == "cpu":
        return "--rehearse is of --device cuda" if options.rehearse else None
    if options.threads is not None:
        return "--threads is of --device cpu"
    if options.rehearse and options.write:
        return "a rehearsal has no figures: --write takes those of a card"
    if not (options.rehearse or options.read or torch.cuda.is_available()):
        return "PyTorch finds no card; --rehearse goes through the plan on the CPU"
    return None


def cpu_names() -> list[str]:
    from benchmarks import suite  # which takes packages that a machine with a card may lack

    return suite.names()


def run_on_cpu(options: argparse.Namespace) -> int:
    from benchmarks import suite

    if options.read:
        results = json.loads(options.read.read_text())
    else:
        results = suite.run(
            options.only,
            quick=options.quick,
            threads=tuple(dict.fromkeys((1, *(options.threads or THREADS)))),
            say=say,
            save=partial(save, options.json),
            before=saved(options.json),
        )
        save(options.json, results)
    if options.write:
        kept = cuda_document.chapter_of(options.write.read_text() if options.write.exists() else "")
        write_whole(options.write, document.page(results, cuda=kept).encode())
    print(document.report(results))
    return ended(verdicts.failed(verdicts.verdicts(results), verdicts.claims(results)))


def run_on_cuda(options: argparse.Namespace) -> int:
    if options.read:
        results = json.loads(options.read.read_text())
    else:
        results = cuda_suite.run(
            options.only,
            quick=options.quick,
            scale=plan.REHEARSAL if options.rehearse else plan.CARD if options.quick else plan.WHOLE,
            say=say,
            save=partial(save, options.json),
            before=saved(options.json),
        )
        save(options.json, results)
    chapter = cuda_document.chapter(results)
    if options.write and results["rehearsal"]:
        parser().error(f"{str(options.read)!r} is of a rehearsal, which has no figures")
    if options.write:
        write_whole(options.write, cuda_document.with_chapter(options.write.read_text(), chapter).encode())
    print(chapter)
    print(cuda_document.next_steps(results, options.read or options.json))
    return ended(cuda_verdicts.failed(results))


def ended(failures: Sequence[str]) -> int:
    for line in failures:
        say(line)
    return 1 if failures else 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "python -m benchmarks",
        description="subquad beside PyTorch's fused softmax and other packages: time, memory, targets.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what is measured")
    options.add_argument(
        "--quick", action="store_true", help="short: about ten minutes, on a card within eight"
    )
    options.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="rows and claims whose names begin so"
    )
    options.add_argument(
        "--threads", nargs="+", type=int, help="of a CPU; one thread is always measured (default: 1 2)"
    )
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="save what was measured, and go on where FILE stops"
    )
    options.add_argument("--read", type=Path, metavar="FILE", help="measure nothing, read what --json saved")
    options.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write the page, docs/performance.md, or its chapter on CUDA",
    )
    options.add_argument("--list", action="store_true", help="the names of all rows and claims")
    options.add_argument(
        "--rehearse", action="store_true", help="go through the plan of --device cuda without a card"
    )
    return options


def saved(path: Path | None) -> dict[str, Any]:
    """What a run before this one left there."""
    return json.loads(path.read_text()) if path and path.exists() else {}


def save(path: Path | None, results: dict[str, Any]) -> None:
    if path:
        write_whole(path, json.dumps(results, indent=1).encode())


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
