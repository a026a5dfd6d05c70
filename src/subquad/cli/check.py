"""What `subquad check` certifies, and how it prints a certificate.

One is made here, line by line. All are made by processes of their own, as many at once as there are cores,
and shown in the catalogue's order as they come.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from subquad.cli.tables import table

if TYPE_CHECKING:
    from subquad.mechanism import Mechanism
    from subquad.nn.layers.layer import Layer
    from subquad.testing import Outcome

Certificate = tuple[str, Callable[[], "Iterator[Outcome]"]]  # of whom, and its lines
CheckLine = dict[str, Any]  # an outcome as JSON
Made = tuple[str, list[CheckLine]]  # of whom, and its lines


def all_names() -> list[str]:
    """The names of all that `--all` certifies: mechanisms and whole layers."""
    from subquad.nn.layers.named import layer_catalog
    from subquad.registry import catalog

    return [*catalog(), *layer_catalog()]


def named(text: str) -> list[Certificate]:
    """Of a known task ("listops:train=100"), whole layer or mechanism, one for each layer of a mixture.

    Or of the class that PACKAGE:CLASS names.
    """
    from subquad import registry, tasks
    from subquad.experiments.rows import task_of
    from subquad.nn.layers.named import find_named, layer_catalog, network
    from subquad.notation import mixes
    from subquad.plugins import hint

    name, colon, rest = text.partition(":")
    if name in tasks.catalog() and (not colon or "=" in rest):
        request = task_of(text)
        if request.target is not None:
            raise ValueError(f"a task is certified with all its targets: leave target={request.target} out")
        return [_certificate(tasks.build(request.name, **request.options), name=text)]
    if mixes(text) or "=" in rest:
        layers = (_layer(name, options) for name, options, _ in network(text))
        return [_certificate(cls) for cls in dict.fromkeys(layers)]
    if colon:
        return [_certificate(_class(name, rest))]
    known = [*registry.catalog(), *layer_catalog(), *tasks.catalog()]
    if name not in known:
        raise ValueError(f"unknown mechanism or task {name!r}{hint(name, known)}")
    return [_certificate(find_named(name))]


def show(name: str, *, as_json: bool) -> tuple[list[Made], int]:
    """Certify what a name stands for, print each line as it comes, and return them and how many failed."""
    console, made = Console(stderr=as_json), []
    for whom, outcomes in named(name):
        console.print(whom, style="bold", markup=False, soft_wrap=True)
        made.append((whom, [_print_line(asdict(outcome), console) for outcome in outcomes()]))
    return _summed_up(made, console, as_json=as_json)


def show_all(names: Sequence[str], *, as_json: bool) -> tuple[list[Made], int]:
    """Certify many, print each certificate as its turn comes and a table of all; how many lines failed."""
    console, certificates = Console(stderr=as_json), []
    with _in_processes(names, console) as coming:
        for whom, lines in coming:
            console.print(whom, style="bold", markup=False, soft_wrap=True)
            certificates.append((whom, [_print_line(line, console) for line in lines]))
    summary = table("certificates", "of", "passed", "failed", "seconds")
    for name, (_, lines) in zip(names, certificates, strict=True):
        failed = _failed(lines)
        seconds = sum(line["seconds"] for line in lines)
        style = "bold red" if failed else None
        summary.add_row(name, str(len(lines) - failed), str(failed), f"{seconds:.0f}", style=style)
    console.print(summary)
    return _summed_up(certificates, console, as_json=as_json)


@contextmanager
def _in_processes(names: Sequence[str], console: Console) -> Iterator[Iterator[Made]]:
    """The certificates in the order of their names, while a bar on a terminal says how many are made."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(min(cores, len(names)))
    task = bar.add_task("certificates", total=len(names))
    try:
        with bar:
            futures = [pool.submit(_made_aside, name) for name in names]
            for future in futures:
                future.add_done_callback(lambda _: bar.advance(task))
            yield (future.result() for future in futures)
    finally:  # after Ctrl-C too: what waits is not begun
        pool.shutdown(cancel_futures=True)


def _made_aside(name: str) -> Made:
    """By a process of its own. Where that dies, a certificate that says so."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_one_thread) as process:
        try:
            return process.submit(_made, name).result()
        except BrokenProcessPool as error:
            reason = f"its process has died: {error}: try `subquad check {name}`"
            line = {"check": "process", "claim": "The process that makes the certificate lives"}
            return name, [{**line, "passed": False, "reason": reason, "seconds": 0.0}]


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # torch is not loaded yet


def _made(name: str) -> Made:
    ((whom, outcomes),) = named(name)
    return whom, [asdict(outcome) for outcome in outcomes()]


def _print_line(line: CheckLine, console: Console) -> CheckLine:
    verdict, style = ("ok    ", "green") if line["passed"] else ("FAILED", "bold red")
    console.print(f"  {verdict}", style=style, end="  ")
    reason = f": {line['reason']}" if line["reason"] else ""
    console.print(f"{line['claim']}{reason}", markup=False, highlight=False, soft_wrap=True)
    return line


def _failed(lines: Iterable[CheckLine]) -> int:
    return sum(not line["passed"] for line in lines)


def _summed_up(certificates: list[Made], console: Console, *, as_json: bool) -> tuple[list[Made], int]:
    every = [line for _, lines in certificates for line in lines]
    failed = _failed(every)
    if not as_json:
        console.print(f"{len(every) - failed} of {len(every)} checks passed", highlight=False)
    return certificates, failed


def _certificate(subject: Any, *, name: str = "") -> Certificate:
    from subquad.mechanism import Mechanism
    from subquad.nn.layers.layer import Layer
    from subquad.task import Task
    from subquad.testing import certify
    from subquad.testing.task import certify as certify_task

    if isinstance(subject, Task):
        return name, lambda: certify_task(subject)
    where = f"{subject.__module__}:{subject.__qualname__}"
    if issubclass(subject, Task):
        return f"{where} ({subject.traits.name})", lambda: certify_task(subject())
    assert issubclass(subject, Mechanism | Layer)
    return f"{where} ({subject.traits.name})", lambda: certify(subject)


def _layer(attention: str, options: Mapping[str, Any]) -> "type[Mechanism] | type[Layer]":
    """A mechanism with these options, and else with those that suit the checks; each of a mixture's, too."""
    from subquad.mixture import mix_heads
    from subquad.nn.layers.named import find_named, is_layer
    from subquad.registry import shares

    if is_layer(cls := find_named(attention)):
        if options:
            raise ValueError(
                f"{attention!r} is a whole layer, which is certified with options of its own: leave "
                f"{', '.join(options)} out"
            )
        return cls
    every = shares(attention, options)
    small = [{**share.mechanism.traits.tiny, **dict(share.options)} for share in every]
    if not options and len(every) == 1:
        return every[0].mechanism
    return mix_heads(
        tuple(replace(share, options=tuple(own.items())) for share, own in zip(every, small, strict=True))
    )


def _class(package: str, name: str) -> type:
    """A mechanism, a layer or a task, also in the current folder."""
    from subquad.mechanism import Mechanism
    from subquad.nn.layers.layer import Layer
    from subquad.task import Task

    sys.path.insert(0, "")
    try:
        cls = getattr(import_module(package), name, None)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"{package!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Mechanism | Layer | Task)):
        raise ValueError(
            f"{name!r} in {package!r} is not a subclass of subquad.Mechanism, subquad.nn.layers.Layer or "
            "subquad.task.Task"
        )
    return cls
