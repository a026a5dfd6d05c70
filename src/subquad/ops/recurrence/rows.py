"""What mechanisms do to rows around a recurrence, each with its gradient.

On their way in queries and keys are turned by their position, or made swish(x) of length 1; on their way out
rows are divided by their root mean square, times a learnt scale, times swish(gate). Compiled kernels do it
to a few tokens at a time, while they are in cache (`native/rows.h`).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Rows = Float[Tensor, "b h t d"]
Turns = Float[Tensor, "#b t d"]  # cosines, then sines, of the angles of pairs (c, c + d/2)
Gates = Float[Tensor, "b h t e"]
Scale = Float[Tensor, " e"]


class Fusion(NamedTuple):
    """What is done to the rows of a recurrence; by default nothing.

    q_scale            a factor of queries
    qk_l2norm_eps      queries and keys become swish(x) of length 1, the square of which is kept above it;
                       0: they stay as they are
    swish_values       values become swish(v)
    gate_normalizer    decays are logits, log alpha = log sigmoid(logit) / it; 0: they are log alpha
    rms_norm_eps       outputs are normed, their mean square kept above it; 0: they are not
    rotary             turns of queries and keys; None: they stay as they are
    scale              factors of normed outputs; they need some
    gate               normed outputs are multiplied by swish(gate); None: they are not
    """

    q_scale: float = 1.0
    qk_l2norm_eps: float = 0.0
    swish_values: bool = False
    gate_normalizer: float = 0.0
    rms_norm_eps: float = 0.0
    rotary: Turns | None = None
    scale: Scale | None = None
    gate: Gates | None = None


class RecurrenceInputs(NamedTuple):
    """What a recurrence takes of each token; or the gradients of that."""

    q: Rows
    k: Rows
    v: Gates
    log_decay: Float[Tensor, "#b #h t #d"]
    beta: Float[Tensor, "b h t 1"] | None = None  # of the delta rule

    def each(self, change: Callable[[Tensor], Tensor]) -> "RecurrenceInputs":
        q, k, v, log_decay, beta = self
        made = None if beta is None else change(beta)
        return RecurrenceInputs(change(q), change(k), change(v), change(log_decay), made)


class Gradients(NamedTuple):
    """Of all inputs of a recurrence: empty tensors for absent inputs."""

    tokens: RecurrenceInputs
    state: Tensor
    scale: Tensor
    gate: Tensor


def preprocess(tokens: RecurrenceInputs, fusion: Fusion) -> RecurrenceInputs:
    """As the recurrence takes them."""
    q, k, v, log_decay, beta = tokens
    v = F.silu(v) if fusion.swish_values else v
    log_decay = F.logsigmoid(log_decay) / fusion.gate_normalizer if fusion.gate_normalizer else log_decay
    return RecurrenceInputs(key(q, fusion, scale=fusion.q_scale), key(k, fusion), v, log_decay, beta)


def preprocess_backward(grad: RecurrenceInputs, tokens: RecurrenceInputs, fusion: Fusion) -> RecurrenceInputs:
    """Gradients of tokens, from those of what `preprocess` makes of them."""
    dq, dk, dv, dlog_decay, dbeta = grad
    dv = swish_backward(dv, tokens.v) if fusion.swish_values else dv
    if fusion.gate_normalizer:
        dlog_decay = dlog_decay * tokens.log_decay.neg().sigmoid_().div_(fusion.gate_normalizer)
    dq, dk = key_backward(dq, tokens.q, fusion, scale=fusion.q_scale), key_backward(dk, tokens.k, fusion)
    return RecurrenceInputs(dq, dk, dv, dlog_decay, dbeta)


def key(x: Rows, fusion: Fusion, *, scale: float = 1.0) -> Rows:
    """A key, or a query, which has a scale."""
    if fusion.rotary is not None:
        return turned(x, fusion.rotary * scale)
    if fusion.qk_l2norm_eps:
        x = F.silu(x)
        return x * (x.square().sum(-1, keepdim=True) + fusion.qk_l2norm_eps).rsqrt()
    return x if scale == 1 else x * scale


def key_backward(grad: Rows, x: Rows, fusion: Fusion, *, scale: float = 1.0) -> Rows:
    if fusion.rotary is not None:
        cos, sin = (fusion.rotary * scale).chunk(2, -1)
        return turned(grad, torch.cat([cos, -sin], -1))
    if fusion.qk_l2norm_eps:
        s = F.silu(x)
        r = (s.square().sum(-1, keepdim=True) + fusion.qk_l2norm_eps).rsqrt_()
        s *= r
        return swish_backward(grad.sub(s.mul_((grad * s).sum(-1, keepdim=True))).mul_(r), x)
    return grad if scale == 1 else grad * scale


def turned(x: Rows, turn: Turns) -> Rows:
    """(a, b) becomes (a cos - b sin, b cos + a sin)."""
    cos, sin = turn[:, None].chunk(2, -1)
    half = x.shape[-1] // 2
    found = (x.unflatten(-1, (2, half)) * cos[..., None, :]).flatten(-2)
    found[..., :half].addcmul_(x[..., half:], sin, value=-1)
    found[..., half:].addcmul_(x[..., :half], sin)
    return found


def swish_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(grad, x)


def postprocess(out: Gates, fusion: Fusion) -> Gates:
    if not fusion.rms_norm_eps:
        return out
    assert fusion.scale is not None
    out = (out * (mean_square(out) + fusion.rms_norm_eps).rsqrt()).mul_(fusion.scale)
    return out if fusion.gate is None else out.mul_(F.silu(fusion.gate))


def mean_square(x: Gates) -> Float[Tensor, "b h t 1"]:
    return torch.einsum("bhte,bhte->bht", x, x)[..., None] / x.shape[-1]


def postprocess_backward(grad: Gates, out: Gates, fusion: Fusion) -> tuple[Gates, Scale, Tensor]:
    """Gradients of `out` as it was before, of the scale and of the gate: no numbers for what there is not."""
    assert fusion.scale is not None
    r = (mean_square(out) + fusion.rms_norm_eps).rsqrt_()
    normed, of_gate = out * r, grad.new_empty(0)
    if fusion.gate is not None:
        of_gate = swish_backward((grad * normed).mul_(fusion.scale), fusion.gate)
        grad = grad * F.silu(fusion.gate)
    of_scale = (grad * normed).sum((0, 1, 2))
    grad = grad * fusion.scale
    return grad.sub(normed.mul_((grad * normed).mean(-1, keepdim=True))).mul_(r), of_scale, of_gate
