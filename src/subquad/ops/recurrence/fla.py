"""The Triton kernels of flash-linear-attention, for half precision on CUDA, where these are sound.

Its tensors are (batch, time, heads, width) and its states (batch, heads, d, e), in float32, as ours. Speed
and precision have not been measured by us; the tests hold only the wiring against `fla`'s plain PyTorch.

Triton compiles its gradients wrongly on Hopper in some versions, which it refuses with a RuntimeError
(fla-org/flash-linear-attention issue 640), and chunked recurrences on newer cards (triton-lang/triton issues
9871 and 10821). Which they are is known from versions, once for each card.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from subquad.ops.recurrence import RecurrenceCall, RecurrenceResult, rows
from subquad.ops.recurrence.rows import Fusion, Gradients, RecurrenceInputs
from subquad.ops.shared.graphed import recording
from subquad.ops.shared.precision import NARROW, wide
from subquad.ops.triton import availability

WIDEST = 256  # keys, in the kernels
OLDEST = (0, 4)  # whose functions take these names and this layout
HOPPER, BLACKWELL = 9, 10  # major compute capabilities
WRONG_ON_HOPPER = ((3, 4), (3, 7, 1))  # versions of Triton, the first and the one that has mended it
UPGRADE = "pip install -U triton fla-core"


def refuses(call: RecurrenceCall) -> str | None:
    q = call.tokens.q
    if not q.is_cuda or q.dtype not in NARROW:
        return "it takes half precision on CUDA"
    if q.shape[2] == 0 or q.shape[3] > WIDEST:
        return f"it takes one token or more, of keys no wider than {WIDEST}"
    major, _ = torch.cuda.get_device_capability(q.device)
    by_channel = call.tokens.beta is not None and call.tokens.log_decay.shape[3] > 1
    return missing() or (missing_kda() if by_channel else None) or unsound(major, gradients=call.needs_grad)


@cache
def missing() -> str | None:
    """Why there is nothing to call."""
    if find_spec("fla") is None:
        return "it is not installed (pip install fla-core triton)"
    try:
        installed = version("fla-core")
    except PackageNotFoundError:
        installed = "0"
    if tuple(int(part) for part in installed.split(".")[:2] if part.isdigit()) < OLDEST:
        return f"fla-core {installed} is too old ({UPGRADE})"
    return None


@cache
def missing_kda() -> str | None:
    """Why it has no delta rule with a decay for each channel, or none."""
    if find_spec("fla.ops.kda") is None:
        return f"fla-core {version('fla-core')} has no delta rule with a decay for each channel ({UPGRADE})"
    return None


@cache
def unsound(major: int, *, gradients: bool) -> str | None:
    """Why it would give wrong numbers on cards of that major compute capability, or none."""
    triton = availability.version()
    if isinstance(triton, str):
        return triton
    first, mended = WRONG_ON_HOPPER
    shown = availability.shown(triton)
    if major >= BLACKWELL:
        return f"Triton {shown} compiles recurrences wrongly on cards of compute capability {major}"
    if major == HOPPER and gradients and first <= triton < mended:
        return f"Triton {shown} compiles its gradients wrongly on Hopper ({UPGRADE})"
    return None


def forward(call: RecurrenceCall) -> RecurrenceResult:
    v = call.tokens.v
    raw, last = product(rows.preprocess(call.tokens.each(widened), call.fusion), call.state, v.dtype)
    out = rows.postprocess(raw, fusion_of(call)).to(v.dtype)
    keeps_raw = call.needs_grad and call.fusion.rms_norm_eps
    return RecurrenceResult(out, raw if keeps_raw else raw.new_empty(0), last)


def backward(grads: tuple[Tensor, Tensor], call: RecurrenceCall, raw: Tensor) -> Gradients:
    """By the kernels' own gradients, for which the forward pass is done again."""
    with recording():
        tokens, state = call.tokens.each(leaf), leaf(call.state)
        scale, gate = (None if x is None else leaf(x) for x in (call.fusion.scale, call.fusion.gate))
        fusion = call.fusion._replace(scale=scale, gate=gate)
        out, _, last = forward(call._replace(tokens=tokens, state=state, fusion=fusion))
        inputs = (*tokens, state, scale, gate)
        present = [x for x in inputs if x is not None]
        found = iter(torch.autograd.grad((out, last), present, grads, materialize_grads=True))
    nothing = call.state.new_empty(0)
    dq, dk, dv, dlog_decay, dbeta, *others = (nothing if x is None else next(found) for x in inputs)
    return Gradients(RecurrenceInputs(dq, dk, dv, dlog_decay, dbeta), *others)


def widened(x: Tensor) -> Tensor:
    return wide(x)[0]


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def fusion_of(call: RecurrenceCall) -> Fusion:
    gate = call.fusion.gate
    return call.fusion._replace(gate=None if gate is None else wide(gate)[0])


def product(tokens: RecurrenceInputs, state: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Outputs in float32 and the last state, by kernels that take `dtype`."""
    *_, log_decay, beta = tokens
    q, k, v = (x.to(dtype).transpose(1, 2) for x in tokens[:3])
    g = log_decay.expand(*tokens.q.shape[:3], -1).transpose(1, 2)
    options = {"scale": 1.0, "initial_state": state, "output_final_state": True}
    if beta is not None:
        beta = beta[..., 0].transpose(1, 2).to(dtype)
        rule, g = ("gated_delta_rule", g[..., 0]) if g.shape[-1] == 1 else ("kda", g)
        out, state = kernel(rule)(q, k, v, g, beta, **options)
    elif g.shape[-1] == 1:
        out, state = kernel("simple_gla")(q, k, v, g=g[..., 0], **options)
    else:
        out, state = kernel("gla")(q, k, v, g=g, **options)
    return out.transpose(1, 2).to(state.dtype), state


def kernel(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """`fla` is no dependency: it is looked up when it is called."""
    return getattr(import_module(f"fla.ops.{name}"), f"chunk_{name}")
