"""Linear attention as one operator, with features made where they are used and a backward pass of its own.

    out_i = sum_j a(q_i, k_j) v_j / sum_j a(q_i, k_j),    a(q, k) = phi(q) . phi(k)

Forward and backward keep the inputs, the outputs, one number a query and one set of sums, so that memory is
O(n d) however many features there are. On the CPU, in float32 and half precision, compiled kernels do the
work, where there are any (`native/linear.cpp`); PyTorch's operators do the same elsewhere
(`linear_tiles.py`). `torch.compile` sees one node.

Inside a causal chunk all keys share one shift a feature, where `kernel_sums.py` gives each key its own. That
is as exact unless a later key of the chunk is so large that a query's own keys vanish beside it. Denominators
tell, and then the whole is done again in shorter chunks, at last of single tokens, which are always exact.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.ops import linear_tiles
from subquad.ops.kernel_sums import ShiftedSums, Sums
from subquad.ops.native import linear as kernels
from subquad.ops.native.library import readable, usable
from subquad.ops.native.linear import Map, exponential
from subquad.ops.operator import call_op, differentiable_once, needs_dispatcher
from subquad.ops.padding import require_mask
from subquad.ops.precision import wide
from subquad.ops.shapes import require_dtype, require_shape, require_together

CHUNKS = (64, 8, 1)  # tokens of a causal chunk, the shorter ones for want of range; the kernels' are of 64
SMALLEST = {torch.float32: 1e-26, torch.float64: 1e-200}  # a denominator below this may have lost terms


class Given(NamedTuple):
    """What the operator starts from: queries and keys, and how features come from them."""

    q: Float[Tensor, "b h t d"]
    k: Float[Tensor, "b h s d"]
    map: Map = Map.GIVEN
    W: Float[Tensor, "f d"] | None = None  # for Map.FAVOR, scaled by d^(-1/4)


def linear_attention(
    given: Given, v: Float[Tensor, "b h s e"], *, valid: Bool[Tensor, "b s"] | None, causal: bool
) -> Float[Tensor, "b h t e"]:
    """The averages of values, for inputs that hold zeros at padding; sums are in float32 at least.

    Raises `ValueError` for inputs whose shapes or dtypes do not fit one another.
    """
    require_fit(given, v, valid, causal=causal)
    return call_op(_forward, given.q, given.k, v, given.W, valid, int(given.map), causal)[0]


def streams(*inputs: Tensor, before: Sums | ShiftedSums | None = None) -> bool:
    """Whether `advance` can take the next tokens: compiled kernels, which have no gradients here."""
    if needs_dispatcher():
        return False
    return readable(*inputs) and usable(*(before or ()))


def advance(
    given: Given,
    v: Float[Tensor, "b h t e"],
    *,
    valid: Bool[Tensor, "b t"] | None,
    before: Sums | ShiftedSums | None,
) -> tuple[Float[Tensor, "b h t e"], Sums | ShiftedSums] | None:
    """The next tokens of a stream by compiled kernels; `None` where a denominator leaves their range."""
    require_fit(given, v, valid, causal=True)
    if before is not None:
        (b, h), f = given.q.shape[:2], width(given.q, given.W)
        require_shape("sums", before.S, b, h, f, v.shape[3])
        require_shape("sums of keys", before.z, b, h, f, 1)
        if isinstance(before, ShiftedSums):
            require_shape("shifts", before.c, b, h, 1, f)
        for x in before:
            require_dtype("sums", x, torch.float32)
    return kernels.step(given.q, given.k, v, given.W, valid, map=given.map, before=before)


def require_fit(given: Given, v: Tensor, valid: Tensor | None, *, causal: bool) -> None:
    """Raise `ValueError` for what does not fit together."""
    require_together(given.q, given.k, v)
    b, h, t, d = given.q.shape
    require_shape("keys", given.k, b, h, t if causal else given.k.shape[2], d)
    if given.W is not None:
        require_shape("directions", given.W, given.W.shape[0], d)
    if valid is not None:
        require_mask(valid, given.k)


@torch.library.custom_op("subquad::linear_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor | None, valid: Tensor | None, map: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, denominators, the sums over all keys, and how many tokens a chunk has."""
    way, chunk, found = Map(map), CHUNKS[0], None
    if readable(q, k, v):
        found = kernels.forward(q, k, v, W, valid, map=way, causal=causal, before=None)
        shorter = iter(CHUNKS[1:])
    else:
        shorter = iter(CHUNKS)
    while found is None:
        chunk = next(shorter)
        found = linear_tiles.forward(q, k, v, W, valid, map=way, causal=causal, chunk=chunk)
        if causal and chunk > 1 and exponential(way) and out_of_range(found[1], valid):
            found = None
    out, den, (S, z, c) = found
    return out, den, S, z, c, torch.tensor([chunk])


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    b, h, t = q.shape[:3]
    f, e, (sums,) = width(q, W), v.shape[3], wide(v)
    S, z, c = sums.new_empty(b, h, f, e), sums.new_empty(b, h, f, 1), sums.new_empty(b, h, 1, f)
    return v.new_empty(b, h, t, e), sums.new_empty(b, h, t), S, z, c, torch.empty(1, dtype=torch.int64)


def width(q: Tensor, W: Tensor | None) -> int:
    """How many features there are."""
    return q.shape[-1] if W is None else W.shape[0]


@torch.library.custom_op("subquad::linear_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Tensor | None,
    valid: Tensor | None,
    out: Tensor,
    den: Tensor,
    S: Tensor,
    z: Tensor,
    c: Tensor,
    chunk: Tensor,
    map: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sums, tokens = ShiftedSums(S, z, c), int(chunk)
    given = (grad, q, k, v, W, valid, out, den)
    if readable(grad, q, k, v, out) and tokens == CHUNKS[0]:
        return kernels.backward(*given, None if causal else sums, map=Map(map), causal=causal)
    return linear_tiles.backward(*given, sums, map=Map(map), causal=causal, chunk=tokens)


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _remember(ctx, inputs, output) -> None:
    q, k, v, W, valid, ctx.map, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, W, valid, *output)


def _pull_back(ctx, grad, *_) -> tuple[Tensor | None, ...]:
    return *call_op(_backward, grad, *ctx.saved_tensors, ctx.map, ctx.causal), None, None, None, None


_forward.register_autograd(_pull_back, setup_context=_remember)
differentiable_once(_backward)


def out_of_range(den: Float[Tensor, "b h t"], valid: Bool[Tensor, "b t"] | None) -> bool:
    """Whether a query that sees keys has too small a denominator."""
    small = den <= SMALLEST[den.dtype]
    if valid is not None:
        small = small & (valid.cumsum(1) > 0)[:, None]
    return bool(small.any())
