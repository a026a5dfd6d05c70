"""What `subquad check` certifies, and how it prints a certificate."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from subquad.mechanism import Mechanism
    from subquad.testing import Outcome

Certificate = tuple[str, Callable[[], "Iterator[Outcome]"]]  # of whom, and its lines


def all_mechanisms() -> list[Certificate]:
    """Of every known mechanism and whole layer."""
    from subquad.nn.layers.named import layer_catalog
    from subquad.registry import catalog

    return [_certificate(cls) for cls in (*catalog().values(), *layer_catalog().values())]


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


def show(certificates: list[Certificate], *, as_json: bool) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Print each line as it comes; all lines by name, and how many failed."""
    console = Console(stderr=as_json)
    everything: dict[str, list[dict[str, Any]]] = {}
    for name, outcomes in certificates:
        lines = everything[name] = []
        console.print(name, style="bold", markup=False, soft_wrap=True)
        for outcome in outcomes():
            lines.append(asdict(outcome))
            verdict, style = ("ok    ", "green") if outcome.passed else ("FAILED", "bold red")
            console.print(f"  {verdict}", style=style, end="  ")
            reason = f": {outcome.reason}" if outcome.reason else ""
            console.print(f"{outcome.claim}{reason}", markup=False, highlight=False, soft_wrap=True)
    every = [line for lines in everything.values() for line in lines]
    failed = sum(not line["passed"] for line in every)
    if not as_json:
        console.print(f"{len(every) - failed} of {len(every)} checks passed", highlight=False)
    return everything, failed


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


def _layer(attention: str, options: Mapping[str, Any]) -> "type[Mechanism]":
    """A mechanism with these options, and else with those that suit the checks; each of a mixture's, too."""
    from subquad.mixture import mix_heads
    from subquad.registry import shares

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
