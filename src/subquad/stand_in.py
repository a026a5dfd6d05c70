"""Mechanisms that can stand where a trained model has softmax attention, without training.

Such a model makes q, k and v and nothing else. A mechanism stands in that takes exactly these, as wide as a
head, and has the form that is asked for. Gates, compressed keys and the like would be made by weights that
nobody has trained.
"""

from typing import Any

import torch

from subquad.mechanism import Dims, Mechanism
from subquad.ops.shared.generators import seeded
from subquad.registry import build, catalog, network

NAMED = 4  # of those that can stand in, in a message


def build_stand_in(attention: str, dims: Dims, *, causal: bool, draw: int = 0, **options: Any) -> Mechanism:
    """The mechanism that stands in for softmax attention, with weights and random features of its own.

    attention: "NAME", "NAME:option=value,…", or several with & between them, which share the heads.
    dims: of the model's attention. `max_len` is asked for by mechanisms with weights per position.
    causal: the form.
    draw: initial weights and random features depend on it; 0: random features are those of the options.
    options: the mechanism's own, unless they stand in `attention`.

    The global random state is left as it was. Raises `ValueError` for what is not known or cannot stand in.
    """
    members = network(attention, options)
    if len(members) > 1:
        raise ValueError(
            f"{attention!r} names mechanisms for the layers of a network, and one layer takes one of them: "
            "name it alone, or several with & between them, which share the heads"
        )
    ((name, chosen, _),) = members
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw)
        mechanism = build(name, dims, causal=causal, **chosen)
    if draw:
        mechanism.redraw(generator=seeded(draw, "stand in"))
    require_stand_in(mechanism, dims, causal=causal)
    return mechanism


def require_stand_in(mechanism: Mechanism, dims: Dims, *, causal: bool) -> None:
    """Raise `ValueError` unless a mechanism that was built can stand in for softmax attention of `dims`.

    Mechanisms with weights per position refuse longer sequences than they were built for by themselves.
    """
    if problem := _problem(mechanism, dims, causal=causal):
        able = stand_ins(dims, causal=causal)
        others = f" and {len(able) - NAMED} others" if len(able) > NAMED else ""
        raise ValueError(f"{problem}; those that can stand in are {', '.join(able[:NAMED])}{others}")


def stand_ins(dims: Dims, *, causal: bool) -> list[str]:
    """The known mechanisms that can stand in for softmax attention with their default options, by name."""
    return [name for name, cls in catalog().items() if _can(cls, dims, causal=causal)]


def _can(cls: type[Mechanism], dims: Dims, *, causal: bool) -> bool:
    try:
        return not _problem(cls(dims, causal=causal), dims, causal=causal)
    except ValueError:  # no such form, or weights per position and no `max_len`
        return False


def _problem(mechanism: Mechanism, dims: Dims, *, causal: bool) -> str:
    """Why it cannot stand in, and what to do; empty where it can."""
    name, widths = mechanism.traits.name, mechanism.projections()
    if extra := [each for each in widths if each not in ("q", "k", "v")]:
        return f"{name!r} takes {', '.join(extra)} beside q, k and v, which only training can make"
    if missing := [each for each in ("q", "k", "v") if each not in widths]:
        return f"{name!r} takes no {', '.join(missing)}, of which a model's attention is made"
    if wrong := {each: width for each, width in widths.items() if width != dims.head_dim}:
        each, width = next(iter(wrong.items()))
        return (
            f"{name!r} takes {each} of width {width}, and the heads are {dims.head_dim} wide: choose options "
            "that leave the width as it is"
        )
    if mechanism.dims.heads != dims.heads:
        return f"{name!r} is built for {mechanism.dims.heads} heads, and there are {dims.heads}: build it so"
    if mechanism.causal != causal:
        return f"{name!r} is built with causal={mechanism.causal}: build it with causal={causal}"
    if causal and mechanism.traits.causal == "values":
        return f"{name!r} knows the future by its choice of keys: take a strictly causal mechanism"
    return ""
