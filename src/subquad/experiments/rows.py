"""From what users type, "performer:features=128,seed=3", to a row of the comparison.

Everything is checked here, before anything runs: the name, each option, its type and its value, and
the form that exists.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from math import inf
from typing import Any, get_args

from subquad import tasks
from subquad.experiments.notation import Option, read, several, swept
from subquad.experiments.spec import MechanismSpec
from subquad.mechanism import Dims
from subquad.plugins import hint
from subquad.registry import build, catalog, find, options

ALL = "all"

SPOKEN: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a word",
}


def rows(texts: Sequence[str], dims: Dims, *, causal: bool = False) -> tuple[MechanismSpec, ...]:
    """The rows that the texts name; `ValueError` for the first that cannot be built.

    A text may name several, with commas between them, and sweep over values of an option. "all" names every
    known mechanism, at its defaults, that has the form asked for.
    """
    if not texts:
        raise ValueError("no attention mechanism is named")
    every = [name for name, cls in catalog().items() if cls.traits.causal or not causal]
    chosen: list[MechanismSpec] = []
    named = chain.from_iterable(map(swept, chain.from_iterable(map(several, texts))))
    for text in chain.from_iterable(every if text == ALL else [text] for text in named):
        row = parse(text, dims, causal=causal)
        if row in chosen:
            raise ValueError(f"{text!r} is asked for twice")
        chosen.append(row)
    return tuple(chosen)


def task_of(text: str) -> tuple[str, dict[str, Option]]:
    """The task that "NAME:option=value,…" names, and the options that are not at their defaults.

    "size=NAME" stands for the options of one of the task's sizes; those that are named beside it go before.
    """
    name, pairs = read(text)
    cls = tasks.find(name)
    sizes = [value for option, value in pairs if option == tasks.SIZE]
    if len(sizes) > 1:
        raise ValueError(f"{text!r} gives {tasks.SIZE!r} twice")
    named = [(option, value) for option, value in pairs if option != tasks.SIZE]
    defaults = tasks.options(cls)
    chosen = {**tasks.sized(cls, *sizes), **read_options(cls, name, text, named, defaults)}
    return name, but_defaults(chosen, defaults)


def parse(text: str, dims: Dims, *, causal: bool) -> MechanismSpec:
    """One row. Where a mechanism has no bidirectional form, its row says that it is causal.

    Options that equal their defaults are left out, so that both ways to ask are one run.
    """
    name, pairs = read(text)
    cls = find(name)
    row = MechanismSpec(
        attention=name,
        options=but_defaults(read_options(cls, name, text, pairs, options(cls)), options(cls)),
        causal=causal or not cls.traits.bidirectional,
    )
    build(name, dims, causal=row.causal, **row.options)  # refuses what the mechanism cannot take
    return row


def read_options(
    cls: type, name: str, text: str, pairs: Sequence[tuple[str, str]], defaults: Mapping[str, Any]
) -> dict[str, Option]:
    """The values of options, as the constructor of `cls` takes them."""
    chosen: dict[str, Option] = {}
    for option, value in pairs:
        if option not in defaults:
            raise ValueError(f"{name!r} has no option {option!r}{hint(option, defaults)}")
        if option in chosen:
            raise ValueError(f"{text!r} gives {option!r} twice")
        chosen[option] = _value(value, cls, name, option)
    return chosen


def but_defaults(chosen: Mapping[str, Option], defaults: Mapping[str, Any]) -> dict[str, Option]:
    """Without the options that are at their defaults."""
    return {option: value for option, value in chosen.items() if value != defaults[option]}


def _value(text: str, cls: type, name: str, option: str) -> Option:
    parameter = inspect.signature(cls).parameters[option]
    stated = set(get_args(parameter.annotation)) | {parameter.annotation}
    kinds: list[Any] = [kind for kind in SPOKEN if kind in stated] or [type(parameter.default)]
    for kind in kinds:
        if kind is bool:
            if text.lower() in {"true", "false"}:
                return text.lower() == "true"
            continue
        with suppress(ValueError):
            value = kind(text)
            if value not in (inf, -inf) and value == value:
                return value
    possible = " or ".join(SPOKEN[kind] if kind in SPOKEN else str(kind) for kind in kinds)
    raise ValueError(f"option {option!r} of {name!r} takes {possible}, not {text!r}")
