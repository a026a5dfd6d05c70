"""That a layer computes the same saved, copied and compiled, and nearly the same in half precision."""

import pickle
from copy import deepcopy

import torch
from torch.utils.checkpoint import checkpoint

from subquad.nn.layers.layer import Layer
from subquad.testing.layer.cases import build_network, cases, random_tokens, real_tokens, targets_of
from subquad.testing.mechanism.cases import LENGTH, assert_close, gradients

# relative to the outputs, which two layers and their norms make: some ten roundings
ALLOWED_OF_LAYERS = {torch.bfloat16: 0.03, torch.float16: 0.004}


def check_same_every_time(cls: type[Layer]) -> None:
    """In eval mode two calls agree, and so do two networks from the same seed."""
    for case in cases(cls):
        x, network = random_tokens(), build_network(cls, case)
        out = network(x).values
        for other in (network, build_network(cls, case)):
            assert_close(other(x).values, out, rtol=0, atol=0, msg=f"{case}: ".__add__)


def check_saved_and_copied(cls: type[Layer]) -> None:
    """The state dict holds everything, onto the meta device too; copies and pickles are the same layer."""
    for case in cases(cls):
        x, network = random_tokens(), build_network(cls, case)
        out = network(x).values
        loaded = build_network(cls, case, seed=7)
        loaded.load_state_dict(network.state_dict())
        with torch.device("meta"):
            assigned = build_network(cls, case)
        assigned.load_state_dict(network.state_dict(), assign=True)
        copies = {
            "loaded": loaded,
            "assigned": assigned,
            "copied": deepcopy(network),
            "pickled": pickle.loads(pickle.dumps(network)),
        }
        for how, other in copies.items():
            assert_close(other(x).values, out, rtol=0, atol=0, msg=f"{case}, {how}: ".__add__)


def check_layers_checkpointed(cls: type[Layer]) -> None:
    """Gradients are the same under activation checkpointing, and when asked for twice."""
    for case in cases(cls):
        network, x = build_network(cls, case), random_tokens(requires_grad=True)
        targets = targets_of(network, x)
        out = real_tokens(network(x))
        expected = gradients(out, targets)
        checkpointed = checkpoint(lambda n=network, x=x: real_tokens(n(x)), use_reentrant=False)
        assert_close(gradients(out, targets), expected, msg=f"{case}, asked for twice: ".__add__)
        assert_close(gradients(checkpointed, targets), expected, msg=f"{case}, checkpointed: ".__add__)


@torch.no_grad()
def check_layers_in_half_precision(cls: type[Layer]) -> None:
    """Outputs in half precision stay near those of the same weights in float64, and keep their dtype."""
    valid = torch.arange(LENGTH).expand(2, -1) % 5 != 2
    for case in cases(cls):
        for dtype, allowed in ALLOWED_OF_LAYERS.items():
            network = build_network(cls, case).to(dtype)
            x = random_tokens().to(dtype)
            out = network(x, valid)
            assert out.values.dtype == dtype, f"{case}: {dtype} in, {out.values.dtype} out"
            exact = real_tokens(network.double()(x.double(), valid))
            error = ((real_tokens(out).double() - exact).norm() / exact.norm()).item()
            assert error < allowed, f"{case}: {dtype} is {error:.2g} off, allowed {allowed}"


def check_layers_compile(cls: type[Layer]) -> None:
    """`torch.compile(fullgraph=True)` captures one graph, with the same outputs and gradients.

    That of the first options in each form, run as it was captured: what is made of it is the compiler's
    matter.
    """
    valid = torch.arange(LENGTH).expand(2, -1) % 5 != 2
    for case in cases(cls):
        if case.options != cls.traits.checked[0]:
            continue
        torch.compiler.reset()
        network, x = build_network(cls, case), random_tokens(requires_grad=True)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        out, expected = compiled(x, valid).values, network(x, valid).values
        assert_close(out, expected, msg=f"{case}: ".__add__)
        targets = targets_of(network, x)
        assert_close(gradients(out, targets), gradients(expected, targets), msg=f"{case}: ".__add__)


check_layers_compile.slow = True  # type: ignore[attr-defined]
