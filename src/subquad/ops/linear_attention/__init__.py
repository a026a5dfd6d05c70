"""Linear attention as one operator, with features made where they are used and a backward pass of its own.

    out_i = sum_j a(q_i, k_j) v_j / sum_j a(q_i, k_j),    a(q, k) = phi(q) . phi(k)

Forward and backward keep the inputs, the outputs, one number a query and one set of sums, so that memory is
O(n d) however many features there are.

Inside a causal chunk all keys share one shift a feature, where `sums.py` gives each key its own. That is as
exact unless a later key of the chunk is so large that a query's own keys vanish beside it. Denominators tell,
and then the whole is done again in shorter chunks, at last of single tokens, which are always exact.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.ops.backends import Backends
from subquad.ops.linear_attention.sums import ShiftedSums, Sums
from subquad.ops.shared.operator import call_op, differentiable_once, dispatched, followed
from subquad.ops.shared.padding import require_mask
from subquad.ops.shared.precision import wide, widened
from subquad.ops.shared.scan import block_tokens
from subquad.ops.shared.shapes import require_dtype, require_matching_inputs, require_shape
from subquad.ops.shared.transforms import passing
from subquad.torch_internals import jit_tracing


class FeatureKind(IntEnum):
    """How features come from queries and keys; the numbers are those of native/kernels.h."""

    FEATURES = 0  # they are features already
    ELU = 1  # elu(x) + 1
    FAVOR = 2  # exp(W x - |x|^2 / (2 sqrt(d)))
    LOGS = 3  # they are logarithms of features

    @property
    def exponential(self) -> bool:
        """Whether features are exponentials, whose sums have shifts."""
        return self in (FeatureKind.FAVOR, FeatureKind.LOGS)


class KernelInputs(NamedTuple):
    """What linear attention starts from: queries and keys, and how features come from them."""

    q: Float[Tensor, "b h t d"]
    k: Float[Tensor, "b h s d"]
    kind: FeatureKind = FeatureKind.FEATURES
    W: Float[Tensor, "f d"] | None = None  # for FAVOR, scaled by d^(-1/4)


class LinearCall(NamedTuple):
    """What a backend is called with; values and keys hold zeros at padding, but where `masks_padding`."""

    q: Float[Tensor, "b h t d"]
    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s e"]
    W: Float[Tensor, "f d"] | None
    valid: Bool[Tensor, "b s"] | None
    kind: FeatureKind
    causal: bool
    before: Sums | ShiftedSums | None = None  # of `step`: the sums before the first key
    in_place: bool = False  # of `step`: whether the sums after the last key may be written over them

    @property
    def features(self) -> int:
        """How many there are."""
        return self.q.shape[-1] if self.W is None else self.W.shape[0]

    @property
    def after(self) -> Sums | ShiftedSums:
        """Where a kernel writes the sums after the last key, in float32: over those before, or elsewhere."""
        if self.in_place and self.before is not None and all(x.is_contiguous() for x in self.before):
            return self.before
        (b, h), e, f = self.q.shape[:2], self.v.shape[3], self.features
        S = self.v.new_empty(b, h, f, e, dtype=torch.float32)
        z = S.new_empty(b, h, f, 1)
        return ShiftedSums(S, z, S.new_empty(b, h, 1, f)) if self.kind.exponential else Sums(S, z)


class LinearResult(NamedTuple):
    """Outputs, and what the backward pass needs beside them."""

    out: Float[Tensor, "b h t e"]
    denominator: Float[Tensor, "b h t"]  # or what else a backend keeps of each query, its logarithm for one
    sums: ShiftedSums  # over all keys; the shifts of features that are no exponentials have no meaning
    chunk: int  # tokens of a causal chunk


BACKENDS = Backends[LinearCall](__name__, "cpu", "triton", "parallel", "reference")


def linear_attention(
    inputs: KernelInputs, v: Float[Tensor, "b h s e"], *, valid: Bool[Tensor, "b s"] | None, causal: bool
) -> Float[Tensor, "b h t e"]:
    """The averages of values; sums are in float32 at least.

    Padding must hold zeros, but where `masks_padding` says that it need not.
    Raises `ValueError` for inputs whose shapes or dtypes do not fit one another.
    """
    q, k, kind, W = inputs
    require_fit(inputs, v, valid, causal=causal)
    if not followed(q, k, v, W):
        return BACKENDS.run("forward", LinearCall(q, k, v, W, valid, kind, causal))[1].out
    return call_op(_forward, q, k, v, W, valid, int(kind), causal)[0]


def advance(
    inputs: KernelInputs,
    v: Float[Tensor, "b h t e"],
    *,
    valid: Bool[Tensor, "b t"] | None,
    before: Sums | ShiftedSums | None,
    in_place: bool = False,
) -> tuple[Float[Tensor, "b h t e"], Sums | ShiftedSums]:
    """The next tokens of a stream, and the sums after them: `ShiftedSums` of exponentials, `Sums` of others.

    Gradients flow through outputs and sums, by PyTorch's own operators.

    in_place: the sums after may be written over those before, where no gradients flow
    """
    q, k, kind, W = inputs
    require_fit(inputs, v, valid, causal=True)
    step = LinearCall(q, k, v, W, valid, kind, True, before, in_place)
    if before is not None:
        if isinstance(before, ShiftedSums) != kind.exponential:
            wanted = ShiftedSums if kind.exponential else Sums
            raise ValueError(f"sums of {kind.name} are {wanted.__name__}, not {type(before).__name__}")
        (b, h), e, f, wider = q.shape[:2], v.shape[3], step.features, widened(v.dtype)
        require_shape("sums", before.S, b, h, f, e)
        require_shape("sums of keys", before.z, b, h, f, 1)
        if isinstance(before, ShiftedSums):
            require_shape("shifts", before.c, b, h, 1, f)
        for x in before:
            require_dtype("sums", x, wider)
    if not dispatched(q, k, v):
        return BACKENDS.run("step", step)[1]
    if torch.compiler.is_compiling():  # which cannot follow the choice
        from subquad.ops.linear_attention import stream

        return stream.scan_tokens(step, tokens=block_tokens(q))
    return BACKENDS.run("step_with_gradients", step)[1]


def masks_padding(
    inputs: KernelInputs, v: Float[Tensor, "b h s e"], *, valid: Bool[Tensor, "b s"], form: str, causal: bool
) -> bool:
    """Whether Triton's kernels will serve, which mask padding as they read: not known of what graphs run.

    `form`: "forward", for `linear_attention`, or "step", for `advance`.
    """
    q, k, kind, W = inputs
    if passing() or jit_tracing() or (form == "step" and dispatched(q, k, v)):
        return False
    return BACKENDS.first(form, LinearCall(q, k, v, W, valid, kind, causal)) == "triton"


def fast_steps(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether compiled kernels, where there are no gradients, would `advance` by these inputs."""
    if dispatched(q, k, v):
        return False
    step = LinearCall(q, k, v, None, None, FeatureKind.FEATURES, True)
    return BACKENDS.first("step", step) not in ("parallel", "reference")


def require_fit(inputs: KernelInputs, v: Tensor, valid: Tensor | None, *, causal: bool) -> None:
    """Raise `ValueError` for what does not fit together."""
    require_matching_inputs(inputs.q, inputs.k, v)
    b, h, t, d = inputs.q.shape
    require_shape("keys", inputs.k, b, h, t if causal else inputs.k.shape[2], d)
    if inputs.W is not None:
        require_shape("directions", inputs.W, inputs.W.shape[0], d)
    if valid is not None:
        require_mask(valid, inputs.k)


@torch.library.custom_op("subquad::linear_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor | None, valid: Tensor | None, kind: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, denominators, the sums over all keys; the backend's index, and its chunk's tokens."""
    index, result = BACKENDS.run("forward", LinearCall(q, k, v, W, valid, FeatureKind(kind), causal))
    out, denominator, (S, z, c), chunk = result
    return out, denominator, S, z, c, torch.tensor([index, chunk])


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, W: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    b, h, t, d = q.shape
    f, e, (sums,) = d if W is None else W.shape[0], v.shape[3], wide(v)
    S, z, c = sums.new_empty(b, h, f, e), sums.new_empty(b, h, f, 1), sums.new_empty(b, h, 1, f)
    return v.new_empty(b, h, t, e), sums.new_empty(b, h, t), S, z, c, torch.empty(2, dtype=torch.int64)


@torch.library.custom_op("subquad::linear_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Tensor | None,
    valid: Tensor | None,
    out: Tensor,
    denominator: Tensor,
    S: Tensor,
    z: Tensor,
    c: Tensor,
    choice: Tensor,
    kind: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    index, chunk = choice.tolist()
    made = LinearCall(q, k, v, W, valid, FeatureKind(kind), causal)
    return BACKENDS[index].backward(grad, made, LinearResult(out, denominator, ShiftedSums(S, z, c), chunk))


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _remember(ctx, inputs, output) -> None:
    q, k, v, W, valid, ctx.kind, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, W, valid, *output)
    ctx.set_materialize_grads(False)  # zeros for what only the backward pass reads


def _gradients(ctx, grad, *_) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    return *call_op(_backward, grad, *ctx.saved_tensors, ctx.kind, ctx.causal), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_remember)
differentiable_once(_backward)
