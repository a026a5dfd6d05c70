"""That queries and keys may turn with their positions, where a mechanism says so: they meet nothing else."""

import torch

from subquad.mechanism import Mechanism
from subquad.ops.shared.rotary import rotate
from subquad.testing.mechanism.cases import LENGTH, assert_close, each_form, gradients, random_inputs


def check_turned_inputs_meet_one_another(cls: type[Mechanism]) -> None:
    """Where all others that turn are zero, one that turns changes nothing, whatever does not turn.

    A feature map may give a query of zero a word on keys, so that of kernels this is asked of queries alone.
    """
    for mechanism in each_form(cls):
        turned, inputs = mechanism.turned_inputs(), random_inputs(mechanism)
        silent = {name: torch.zeros_like(inputs[name]) for name in turned}
        for name in turned:
            if name == "q" or not has_kernel(mechanism):
                x = inputs[name].clone().requires_grad_()
                gradient = gradients(mechanism(**{**inputs, **silent, name: x}), {name: x})[name]
                label = f"{name} meets more than {', '.join(turned)}: ".__add__
                assert_close(gradient, torch.zeros_like(x), msg=label)


def check_turning_all_alike_changes_nothing(cls: type[Mechanism]) -> None:
    """Where scores are products q . k, they are as before when all that turns has turned by the same angles.

    Kernels apart, whose features need not turn with what they are of.
    """
    for mechanism in each_form(cls):
        if mechanism.score_inputs() and not has_kernel(mechanism):
            inputs, place = random_inputs(mechanism), torch.full((1, LENGTH), 5)
            turned = {name: rotate(inputs[name], place) for name in mechanism.turned_inputs()}
            assert_close(mechanism(**{**inputs, **turned}), mechanism(**inputs))


def has_kernel(mechanism: Mechanism) -> bool:
    return any(member.traits.family == "kernel" for member in mechanism.members())
