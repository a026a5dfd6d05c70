"""Initial weights by name, so that two models that differ in one part share all the others.

Drawn one after the other from one seed, the weights of everything after the first difference would differ
too, and a comparison of mechanisms would also compare draws.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from subquad.nn.attention_layer import AttentionLayer
from subquad.ops.shared.generators import digest


def initialise(model: nn.Module, *, seed: int) -> None:
    """Draw all weights of `model` anew, those of each module from (seed, the module's name).

    Mechanisms draw theirs as they do when built. The global random state is left as it was. Raises
    `ValueError` for weights that are not on the CPU, and for modules without `reset_parameters`.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError("weights are drawn on the CPU, to be equal on all devices: initialise, then move")
    mechanisms = [module.mechanism for module in model.modules() if isinstance(module, AttentionLayer)]
    theirs = {part for mechanism in mechanisms for part in mechanism.modules()}
    parts_first = reversed(list(model.named_modules()))  # the whole has the last word
    for name, module in parts_first:
        if module in theirs:
            continue
        if next(module.parameters(recurse=False), None) is not None:
            if not callable(reset := getattr(module, "reset_parameters", None)):
                raise ValueError(f"{name or 'the model'} has weights and no reset_parameters to draw them")
            with drawn_from(seed, name):
                reset()
        if isinstance(module, AttentionLayer):
            with drawn_from(seed, f"{name}.mechanism"):
                module.mechanism.load_state_dict(module.build_mechanism().state_dict())


@contextmanager
def drawn_from(seed: int, name: str) -> Iterator[None]:
    """Random numbers inside depend on (seed, name) alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(digest(seed, name))
        yield
