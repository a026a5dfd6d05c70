"""The inputs of the checks: odd, small, seeded, and in float64.

On the CPU in float64, what fails is mathematics and not rounding. `precision` makes them float32, for code
that runs in nothing else.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, testing

from subquad.mechanism import Dims, Mechanism, State

DIMS = Dims(heads=2, head_dim=4, max_len=4096)
LENGTH = 24
CHUNKS = ([1, 2, 9, 12], [24], [17, 0, 7], [1] * 24)  # ways to cut a sequence of LENGTH

# sums of float32, and their gradients, in another order; relative, and absolute near zero
FLOAT32_TOLERANCE = {"rtol": 1e-3, "atol": 2e-4}

Tensors = dict[str, Tensor]  # inputs, gradients or parameters

_dtype = ContextVar("dtype", default=torch.float64)


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Within, mechanisms and inputs are in `dtype`, float64 or float32."""
    token = _dtype.set(dtype)
    try:
        yield
    finally:
        _dtype.reset(token)


def assert_close(actual: Any, expected: Any, **options: Any) -> None:
    """`torch.testing.assert_close`, with the tolerance of float32 where that is the precision."""
    tolerance = FLOAT32_TOLERANCE if _dtype.get() == torch.float32 else {}
    testing.assert_close(actual, expected, **{**tolerance, **options})


def forms(cls: type[Mechanism]) -> list[bool]:
    """The values of `causal` that the traits claim."""
    return [causal for causal in (True, False) if (cls.traits.causal if causal else cls.traits.bidirectional)]


def dims_for(cls: type[Mechanism]) -> Dims:
    """Two heads, or as many as a mixture has shares."""
    return replace(DIMS, heads=max(DIMS.heads, cls.heads_multiple))


def make(
    cls: type[Mechanism], *, causal: bool, dims: Dims | None = None, seed: int = 0, **options: Any
) -> Mechanism:
    """A mechanism in the current precision, with the options of its `tiny` trait unless others are given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mechanism = cls(dims or dims_for(cls), causal=causal, **(options or dict(cls.traits.tiny)))
        return mechanism.to(_dtype.get())


def each_form(cls: type[Mechanism]) -> Iterator[Mechanism]:
    for causal in forms(cls):
        yield make(cls, causal=causal)


def random_inputs(
    mechanism: Mechanism,
    *,
    batch: int = 2,
    length: int = LENGTH,
    queries: int | None = None,
    dtype: torch.dtype | None = None,
    requires_grad: bool = False,
    seed: int = 1,
) -> Tensors:
    """Normal inputs for every projection; `queries` where they differ from the keys in number.

    In the current precision, unless another `dtype` is given.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, width in mechanism.projections().items():
        rows = queries if queries is not None and name == "q" else length
        shape = (batch, mechanism.dims.heads, rows, width)
        x = torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype or _dtype.get())
        inputs[name] = x.requires_grad_(requires_grad)
    return inputs


def padding_masks() -> dict[str, Bool[Tensor, "2 24"]]:
    """Masks with padding at the end, at the beginning, and anywhere; the second row always has less."""
    t = torch.arange(LENGTH)
    anywhere = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.6
    return {
        "at the end": torch.stack([t < 24, t < 17]),
        "at the beginning": torch.stack([t >= 2, t >= 11]),
        "anywhere": anywhere,
    }


def fill(inputs: Tensors, valid: Bool[Tensor, "b s"], value: float) -> Tensors:
    """The inputs with `value` where there is padding, as leaves of their own."""
    padding = ~valid[:, None, :, None]
    return {
        name: x.detach().masked_fill(padding, value).requires_grad_(x.requires_grad)
        for name, x in inputs.items()
    }


def stream(
    mechanism: Mechanism,
    inputs: Tensors,
    chunks: list[int],
    *,
    valid: Bool[Tensor, "b s"] | None = None,
    state: State | None = None,
    in_place: bool = False,
) -> tuple[Tensor, State]:
    """What `step` gives for the sequence cut into `chunks`, and the state after it."""
    outputs, start = [], 0
    for size in chunks:
        chunk = slice(start, start + size)
        parts = {name: x[:, :, chunk] for name, x in inputs.items()}
        part_valid = None if valid is None else valid[:, chunk]
        out, state = mechanism.step(**parts, valid=part_valid, state=state, in_place=in_place)
        outputs.append(out)
        start += size
    return torch.cat(outputs, 2), state


def leaves(mechanism: Mechanism, inputs: Tensors) -> Tensors:
    """Everything a gradient should reach: inputs and parameters, by name."""
    return {**inputs, **{f"parameter {name}": p for name, p in mechanism.named_parameters()}}


def gradients(out: Tensor, targets: Tensors) -> Tensors:
    """The gradients of a fixed weighted sum of `out`, by name; zeros where there is none."""
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    loss = (out * weight).sum()
    grads = torch.autograd.grad(loss, list(targets.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(targets, grads, strict=True))


def tensors(state: Any) -> list[Tensor]:
    """The tensors of a state, however deep its tuples are."""
    return [state] if isinstance(state, Tensor) else [x for part in state for x in tensors(part)]


def map_state(change: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The state with each tensor changed, however deep its tuples are."""
    if isinstance(state, Tensor):
        return change(state)
    parts = [map_state(change, part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def positional(method: Callable[..., Any]) -> list[str]:
    """The names of the inputs that a method takes."""
    kinds = inspect.signature(method).parameters.values()
    return [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD]
