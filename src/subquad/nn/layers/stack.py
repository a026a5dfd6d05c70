"""Layers one after another; those of one class that follow on one another run together, by `Layer.run`."""

from collections.abc import Iterable

from subquad.mechanism import State
from subquad.nn.layers.layer import Layer
from subquad.nn.sequence import Sequence


def run_layers(layers: Iterable[Layer], sequence: Sequence) -> Sequence:
    """What the last of the layers makes of what the first is given."""
    for group in grouped(layers):
        sequence = type(group[0]).run(group, sequence)
    return sequence


def step_layers(
    layers: Iterable[Layer], sequence: Sequence, states: Iterable[State | None], *, in_place: bool
) -> tuple[Sequence, tuple[State, ...]]:
    """The same for the next chunk of a stream, and the states after it, one a layer."""
    before, later = list(states), []
    for group in grouped(layers):
        here = before[len(later) : len(later) + len(group)]
        sequence, after = type(group[0]).run_step(group, sequence, here, in_place=in_place)
        later += after
    return sequence, tuple(later)


def grouped(layers: Iterable[Layer]) -> list[list[Layer]]:
    """The layers, those of one class that follow on one another together."""
    groups: list[list[Layer]] = []
    for layer in layers:
        if groups and type(groups[-1][0]) is type(layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups
