"""That derivatives of every kind are right, or a ValueError that says what to do instead.

An operator without a rule for a transform may give zeros and no error. And tensors made under a transform, or
a mode such as that of fake tensors, end with it: a mechanism that keeps one fails in its next plain call.
"""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import Tensors, assert_close, each_form, forms, make, random_inputs
from subquad.torch_internals import FakeTensorMode

SHORT = 11  # tokens: enough for two segments, windows and buckets of those that suit tests
STEP = 1e-5  # of central differences, whose error is about its square
DIFFERENCE_TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}

T = TypeVar("T")


def check_forward_mode_derivatives(cls: type[Mechanism]) -> None:
    """Tangents agree with gradients, or a ValueError says what to do; they are never silently zero."""
    for mechanism in each_form(cls):
        inputs, along = (random_inputs(mechanism, length=SHORT, seed=seed) for seed in (1, 2))
        weight = random_like(mechanism(**inputs))
        expected = inner(gradients(mechanism, inputs, weight), along)
        for enabled in (True, False):
            for differentiate in (by_transform, by_dual_numbers):
                with torch.set_grad_enabled(enabled):
                    tangent = unless_refused(partial(differentiate, mechanism, inputs, along))
                if tangent is not None:
                    assert_close((tangent * weight).sum(), expected)


def check_second_derivatives(cls: type[Mechanism]) -> None:
    """Gradients of gradients agree with differences of gradients, or a ValueError says what to do."""
    for mechanism in each_form(cls):
        inputs, along = (random_inputs(mechanism, length=SHORT, seed=seed) for seed in (1, 2))
        weight = random_like(mechanism(**inputs))
        actual = unless_refused(partial(second, mechanism, inputs, weight, along))
        if actual is not None:
            above, below = (
                gradients(mechanism, {name: x + step * along[name] for name, x in inputs.items()}, weight)
                for step in (STEP, -STEP)
            )
            for name, x, a, b in zip(inputs, actual, above, below, strict=True):
                assert_close(x, (a - b) / (2 * STEP), **DIFFERENCE_TOLERANCE, msg=f"of {name}: ".__add__)


def check_per_sample_gradients(cls: type[Mechanism]) -> None:
    """`vmap(grad(loss))` gives each sample's own gradients, or a ValueError says what to do."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism, length=SHORT)
        weight = random_like(mechanism(**inputs)[:1])
        weights = {name: p.detach() for name, p in mechanism.named_parameters()}
        actual = unless_refused(partial(per_sample, mechanism, inputs, weight, weights))
        for row in range(2 if actual else 0):
            targets = {
                **{f"parameter {name}": p.clone().requires_grad_() for name, p in weights.items()},
                **{name: x[row].requires_grad_() for name, x in inputs.items()},
            }
            parameters = {name: targets[f"parameter {name}"] for name in weights}
            loss = sample_loss(mechanism, weight, parameters, {name: targets[name] for name in inputs})
            expected = torch.autograd.grad(loss, list(targets.values()), materialize_grads=True)
            for name, x, y in zip(targets, actual or (), expected, strict=True):
                assert_close(x[row], y, msg=f"the gradient of {name} in row {row}: ".__add__)


def check_transforms_leak_nothing(cls: type[Mechanism]) -> None:
    """After transforms, fake tensors and inference mode, it still works, and so does a new one."""
    for causal in forms(cls):
        mechanism = make(cls, causal=causal)
        for length, disturb in enumerate(DISTURBANCES, start=SHORT):  # none of which has been met before
            inputs = random_inputs(mechanism, length=length)
            unless_refused(partial(disturb, mechanism, inputs))
            label = f"after {disturb.__name__}: "
            for subject in (mechanism, make(cls, causal=causal)):
                for enabled in (False, True):
                    with torch.set_grad_enabled(enabled):
                        out = subject(**inputs)
                    assert type(out) is Tensor, f"{label}gives a {type(out).__name__}"
                    assert_close(out, subject.definition(**inputs), msg=label.__add__)
                    assert subject.penalty().isfinite(), f"{label}the penalty is not finite"
                    subject.update()


def gradients(mechanism: Mechanism, inputs: Tensors, weight: Tensor, *, graph: bool = False) -> list[Tensor]:
    """Of the inputs, which are set to require them in place if there is to be a `graph`."""
    at = {name: (x if graph else x.detach().clone()).requires_grad_() for name, x in inputs.items()}
    loss = (mechanism(**at) * weight).sum()
    return list(torch.autograd.grad(loss, list(at.values()), create_graph=graph, materialize_grads=True))


def second(mechanism: Mechanism, inputs: Tensors, weight: Tensor, along: Tensors) -> list[Tensor]:
    """How the gradients change along a direction, by differentiating them."""
    at = {name: x.detach().clone() for name, x in inputs.items()}
    change = inner(gradients(mechanism, at, weight, graph=True), along)
    if not change.requires_grad:
        return [torch.zeros_like(x) for x in at.values()]
    return list(torch.autograd.grad(change, list(at.values()), materialize_grads=True))


def per_sample(mechanism: Mechanism, inputs: Tensors, weight: Tensor, weights: Tensors) -> list[Tensor]:
    """The gradients of weights, then of inputs, sample by sample."""
    one = torch.func.grad(partial(sample_loss, mechanism, weight), argnums=(0, 1))
    of_weights, of_inputs = torch.func.vmap(one, in_dims=(None, 0))(weights, inputs)
    return [*of_weights.values(), *of_inputs.values()]


def sample_loss(mechanism: Mechanism, weight: Tensor, weights: Tensors, sample: Tensors) -> Tensor:
    alone = {name: x[None] for name, x in sample.items()}
    return (torch.func.functional_call(mechanism, weights, (), alone) * weight).sum()


def by_transform(mechanism: Mechanism, inputs: Tensors, along: Tensors) -> Tensor:
    return torch.func.jvp(lambda x: mechanism(**x), (inputs,), (along,))[1]


def by_dual_numbers(mechanism: Mechanism, inputs: Tensors, along: Tensors) -> Tensor:
    with forward_ad.dual_level():
        out = mechanism(**{name: forward_ad.make_dual(x, along[name]) for name, x in inputs.items()})
        tangent = forward_ad.unpack_dual(out).tangent
        return torch.zeros_like(out) if tangent is None else tangent


def by_gradient(mechanism: Mechanism, inputs: Tensors) -> None:
    torch.func.grad(lambda x: mechanism(**x).square().sum())(inputs)


def by_vmap(mechanism: Mechanism, inputs: Tensors) -> None:
    with torch.no_grad():
        torch.func.vmap(lambda x: mechanism(**{name: y[None] for name, y in x.items()}))(inputs)


def by_tangents(mechanism: Mechanism, inputs: Tensors) -> None:
    by_transform(mechanism, inputs, inputs)


def by_fake_tensors(mechanism: Mechanism, inputs: Tensors) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        mechanism(**{name: mode.from_tensor(x) for name, x in inputs.items()})


def by_inference(mechanism: Mechanism, inputs: Tensors) -> None:
    with torch.inference_mode():
        mechanism(**inputs)


DISTURBANCES = (by_gradient, by_vmap, by_tangents, by_fake_tensors, by_inference)


def unless_refused(attempt: Callable[[], T]) -> T | None:
    """The attempt's result; None where it raises a ValueError with a message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, of how fast its own rules are
            return attempt()
    except ValueError as error:
        if not str(error):
            raise AssertionError("the error has no message") from error
        return None


def inner(grads: Iterable[Tensor], along: Tensors) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(grads, along.values(), strict=True)]).sum()


def random_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
