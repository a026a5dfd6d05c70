"""That it computes the same every time, saved and loaded, compiled, and nearly so in half precision."""

import os
import shutil

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import (
    LENGTH,
    Tensors,
    assert_close,
    each_form,
    forms,
    gradients,
    leaves,
    make,
    random_inputs,
)

# relative to the output: a rounding of input and output, and of weights in fused kernels
ALLOWED = {torch.bfloat16: 0.02, torch.float16: 0.003}


def check_deterministic(cls: type[Mechanism]) -> None:
    """In eval mode two calls agree, and so do two mechanisms from the same seed."""
    for causal in forms(cls):
        mechanism, twin = (make(cls, causal=causal).eval() for _ in range(2))
        inputs = random_inputs(mechanism)
        out = mechanism(**inputs)
        assert_close(mechanism(**inputs), out, rtol=0, atol=0)
        assert_close(twin(**inputs), out, rtol=0, atol=0)


def check_state_dict_round_trip(cls: type[Mechanism]) -> None:
    """The state dict holds everything: parameters, random features and patterns, also redrawn ones."""
    for causal in forms(cls):
        mechanism, other = make(cls, causal=causal), make(cls, causal=causal, seed=7)
        mechanism.redraw(generator=torch.Generator().manual_seed(5))
        other.load_state_dict(mechanism.state_dict())
        inputs = random_inputs(mechanism)
        assert_close(other(**inputs), mechanism(**inputs), rtol=0, atol=0)


def check_gradient_checkpointing(cls: type[Mechanism]) -> None:
    """Gradients are the same under activation checkpointing, and when asked for twice."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism, requires_grad=True)
        targets = leaves(mechanism, inputs)
        out = mechanism(**inputs)
        expected = gradients(out, targets)
        checkpointed = checkpoint(lambda m=mechanism, x=inputs: m(**x), use_reentrant=False)
        for label, result in (("asked for twice", out), ("checkpointed", checkpointed)):
            assert_close(gradients(result, targets), expected, msg=f"{label}: ".__add__)


def check_penalty(cls: type[Mechanism]) -> None:
    """The penalty is one finite number, after a call and before any."""
    for mechanism in each_form(cls):
        for _ in range(2):
            penalty = mechanism.penalty()
            assert penalty.shape == (), f"penalty of shape {tuple(penalty.shape)}, not a scalar"
            assert penalty.isfinite(), f"penalty {penalty}"
            mechanism(**random_inputs(mechanism, requires_grad=True))


def check_half_precision(cls: type[Mechanism]) -> None:
    """Errors against float64 stay near one rounding, whatever the length; sums do not overflow.

    Values lie around 50, so that a sum kept in float16 would overflow and one in bfloat16 would drift.
    """
    for causal in forms(cls):
        for dtype, allowed in ALLOWED.items():
            short, long = (half_error(cls, causal=causal, dtype=dtype, length=n) for n in (64, 1024))
            label = f"{dtype}: error {short:.2g} at 64 tokens, {long:.2g} at 1,024"
            assert max(short, long) < allowed, f"{label}; allowed {allowed}"
            assert long < 2 * short + allowed / 4, f"{label}: it grows with length"


def half_error(cls: type[Mechanism], *, causal: bool, dtype: torch.dtype, length: int) -> float:
    mechanism = make(cls, causal=causal).to(dtype)
    inputs = {name: x.to(dtype) for name, x in random_inputs(mechanism, length=length).items()}
    inputs["v"] = inputs["v"] + 50
    with torch.no_grad():
        out = mechanism(**inputs).double()
        exact = mechanism.double()(**{name: x.double() for name, x in inputs.items()})
    assert out.isfinite().all(), f"{dtype}: not finite at {length} tokens"
    return ((out - exact).norm() / exact.norm()).item()


def check_compiles(cls: type[Mechanism]) -> None:
    """`torch.compile(fullgraph=True)` gives the same outputs and gradients."""
    # without a C++ compiler the graph and its gradients are still captured, and run as they are
    backend = "inductor" if shutil.which(os.environ.get("CXX", "g++")) else "aot_eager"
    for mechanism in each_form(cls):
        torch.compiler.reset()
        compiled = torch.compile(mechanism, fullgraph=True, backend=backend)
        inputs = random_inputs(mechanism, requires_grad=True)
        valid = torch.arange(LENGTH).expand(2, -1) % 5 != 2
        assert_same_gradients(
            compiled(**inputs, valid=valid), mechanism(**inputs, valid=valid), mechanism, inputs
        )


def assert_same_gradients(out: Tensor, expected: Tensor, mechanism: Mechanism, inputs: Tensors) -> None:
    assert_close(out, expected)
    targets = leaves(mechanism, inputs)
    assert_close(gradients(out, targets), gradients(expected, targets))


check_compiles.slow = True  # type: ignore[attr-defined]
