"""Drawing random features anew in the course of training.

A model that keeps one draw learns its accidents; a new one now and then keeps it to what holds on average.
What is drawn depends on nothing but (seed, step, place in the model), so that all ranks of a distributed
training draw the same, and a training that was interrupted draws what it would have drawn.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from subquad.nn.attention_layer import AttentionLayer
from subquad.ops.shared.generators import seeded


@runtime_checkable
class Redrawn(Protocol):
    """A mechanism that has a schedule."""

    redraw_every: int  # steps; 0: never

    def redraw(self, *, generator: torch.Generator) -> None: ...


def redraw(model: nn.Module, *, step: int, seed: int) -> bool:
    """Draw anew what is due before step `step`, counted from 0, and say whether anything was; a training loop
    calls it before every step.

    Due is what a mechanism draws at multiples of its `redraw_every`, but not at 0. Layers in eval mode keep
    what they have, and so does every mechanism without a schedule. A stream's state belongs to the features
    it was made with: begin a new one after a redraw.

    model: changed in place.
    step: of training, from 0.
    seed: of the training.
    """
    layers = (module for module in model.modules() if isinstance(module, AttentionLayer))
    drawn = False
    for place, layer in enumerate(layers):
        if step == 0 or not layer.training:
            continue
        redrawn = (member for member in layer.mechanism.members() if isinstance(member, Redrawn))
        if due := [member for member in redrawn if member.redraw_every and step % member.redraw_every == 0]:
            generator = seeded(seed, "redraw", step, place)
            for mechanism in due:
                mechanism.redraw(generator=generator)
            drawn = True
    return drawn
