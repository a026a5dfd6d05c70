"""From what users type, "performer:features=128,seed=3", to a row of the comparison.

Everything is checked here, before anything runs: the name, each option, its type and its value, and
the form that exists.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from subquad import tasks
from subquad.experiments.spec import MechanismSpec
from subquad.mechanism import Dims
from subquad.nn.layers.named import has_whole_layers, network, traits_of
from subquad.notation import Option, but_defaults, read, read_options, several, swept
from subquad.registry import Member, build, catalog, network_name

ALL = "all"


class TaskRequest(NamedTuple):
    """A task as users ask for it; `target` None: its first, or what the data say."""

    name: str
    options: dict[str, Option]  # those that are not at their defaults
    target: str | None


def rows(texts: Sequence[str], dims: Dims, *, causal: bool = False) -> tuple[MechanismSpec, ...]:
    """The rows of a bench that the texts name; `ValueError` for the first that cannot be built, or be timed.

    "all" names every known mechanism that has the form asked for.
    """
    every = [name for name, cls in catalog().items() if cls.traits.causal or not causal]
    chosen = tuple(in_form(mechanism, causal=causal) for mechanism in mechanisms(texts, every=every))
    for row in chosen:
        if has_whole_layers(row.attention, row.options):
            raise ValueError(
                f"{row.label!r} has whole layers, and the bench times attention by itself: "
                "`subquad compare` measures them within their model"
            )
        for name, options, _ in network(row.attention, row.options):
            build(name, dims, causal=row.causal, **options)
    return chosen


def mechanisms(texts: Sequence[str], *, every: Iterable[str]) -> list[MechanismSpec]:
    """The mechanisms that the texts name, in no form yet: their names and options are known, none is built.

    A text may name several, with commas between them, and sweep over values of an option. "all" names
    `every`, at its defaults. Options that equal their defaults are left out, so that both ways to ask are
    one run.
    """
    if not texts:
        raise ValueError("no attention mechanism is named")
    chosen: list[MechanismSpec] = []
    named = chain.from_iterable(map(swept, chain.from_iterable(map(several, texts))))
    for text in chain.from_iterable(every if text == ALL else [text] for text in named):
        members = network(text)
        alone = members[0] if len(members) == 1 else Member(network_name(members), {})
        mechanism = MechanismSpec(attention=alone.attention, options=alone.options)
        if mechanism in chosen:
            raise ValueError(f"{text!r} is asked for twice")
        chosen.append(mechanism)
    return chosen


def in_form(mechanism: MechanismSpec, *, causal: bool) -> MechanismSpec:
    """The row of a mechanism: bidirectional unless causal forms are asked for or it has no other."""
    return replace(
        mechanism, causal=causal or not traits_of(mechanism.attention, mechanism.options).bidirectional
    )


def task_of(text: str, *, target: str | None = None) -> TaskRequest:
    """The task that "NAME:option=value,…" names.

    "size=NAME" stands for the options of one of the task's sizes; those that are named beside it go before.
    "target=NAME" is one of its targets, unless `target` is given.
    """
    name, pairs = read(text)
    cls = tasks.find(name)
    sizes = [value for option, value in pairs if option == tasks.SIZE]
    targets = [value for option, value in pairs if option == tasks.TARGET]
    for option, values in {tasks.SIZE: sizes, tasks.TARGET: targets}.items():
        if len(values) > 1:
            raise ValueError(f"{text!r} gives {option!r} twice")
    if targets and target is not None:
        raise ValueError(f"{text!r} names a target, and {target!r} is given beside it: leave one out")
    named = [pair for pair in pairs if pair[0] not in (tasks.SIZE, tasks.TARGET)]
    defaults = tasks.options(cls)
    chosen = {**tasks.sized(cls, *sizes), **read_options(cls, name, text, named, defaults)}
    return TaskRequest(name, but_defaults(chosen, defaults), next(iter(targets), target))
