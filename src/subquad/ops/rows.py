"""What mechanisms do to rows around a recurrence, each with its gradient.

On their way in queries and keys are turned by their position, or made swish(x) of length 1; on their way out
rows are divided by their root mean square, times a learnt scale, times swish(gate). Compiled kernels do it
to a few tokens at a time, while they are in cache (`native/rows.h`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Rows = Float[Tensor, "b h t d"]
Turns = Float[Tensor, "#b t d"]  # cosines, then sines, of the angles of pairs (c, c + d/2)
Gates = Float[Tensor, "b h t e"]
Scale = Float[Tensor, " e"]


class Around(NamedTuple):
    """What is done to the rows of a recurrence; by default nothing."""

    q_scale: float = 1.0  # of queries
    unit: float = 0.0  # queries and keys become swish(x) of length 1, the square of which is kept above this
    swish_values: bool = False
    root: float = 0.0  # decays are not logarithms, but logits: log alpha = root * log sigmoid(logit)
    norm: float = 0.0  # outputs are normed, their mean square kept above this,
    turn: Turns | None = None  # queries and keys are turned
    scale: Scale | None = None  # outputs are multiplied by this after the norm,
    gate: Gates | None = None  # and by swish of this


class Tokens(NamedTuple):
    """What a recurrence takes of each token; or the gradients of that."""

    q: Rows
    k: Rows
    v: Gates
    log_decay: Float[Tensor, "#b #h t #d"]
    beta: Float[Tensor, "b h t 1"] | None  # of the delta rule


class Pulled(NamedTuple):
    """Gradients of all that a recurrence is given: no numbers for what there was not."""

    tokens: Tokens
    state: Tensor
    scale: Tensor
    gate: Tensor


def ready(given: Tokens, around: Around) -> Tokens:
    """As the recurrence takes them."""
    q, k, v, log_decay, beta = given
    v = F.silu(v) if around.swish_values else v
    log_decay = F.logsigmoid(log_decay) * around.root if around.root else log_decay
    return Tokens(key(q, around, scale=around.q_scale), key(k, around), v, log_decay, beta)


def pull_ready(grad: Tokens, given: Tokens, around: Around) -> Tokens:
    """Gradients of tokens, from those of what `ready` makes of them."""
    dq, dk, dv, dlog_decay, dbeta = grad
    dv = pull_swish(dv, given.v) if around.swish_values else dv
    if around.root:
        dlog_decay = dlog_decay * given.log_decay.neg().sigmoid_().mul_(around.root)
    dq, dk = pull_key(dq, given.q, around, scale=around.q_scale), pull_key(dk, given.k, around)
    return Tokens(dq, dk, dv, dlog_decay, dbeta)


def key(x: Rows, around: Around, *, scale: float = 1.0) -> Rows:
    """A key, or a query, which has a scale."""
    if around.turn is not None:
        return turned(x, around.turn * scale)
    if around.unit:
        x = F.silu(x)
        return x * (x.square().sum(-1, keepdim=True) + around.unit).rsqrt()
    return x if scale == 1 else x * scale


def pull_key(grad: Rows, x: Rows, around: Around, *, scale: float = 1.0) -> Rows:
    if around.turn is not None:
        cos, sin = (around.turn * scale).chunk(2, -1)
        return turned(grad, torch.cat([cos, -sin], -1))
    if around.unit:
        s = F.silu(x)
        r = (s.square().sum(-1, keepdim=True) + around.unit).rsqrt_()
        s *= r
        return pull_swish(grad.sub(s.mul_((grad * s).sum(-1, keepdim=True))).mul_(r), x)
    return grad if scale == 1 else grad * scale


def turned(x: Rows, turn: Turns) -> Rows:
    """(a, b) becomes (a cos - b sin, b cos + a sin)."""
    cos, sin = turn[:, None].chunk(2, -1)
    half = x.shape[-1] // 2
    found = (x.unflatten(-1, (2, half)) * cos[..., None, :]).flatten(-2)
    found[..., :half].addcmul_(x[..., half:], sin, value=-1)
    found[..., half:].addcmul_(x[..., :half], sin)
    return found


def pull_swish(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(grad, x)


def finished(out: Gates, around: Around) -> Gates:
    if not around.norm:
        return out
    assert around.scale is not None
    out = (out * (mean_square(out) + around.norm).rsqrt()).mul_(around.scale)
    return out if around.gate is None else out.mul_(F.silu(around.gate))


def mean_square(x: Gates) -> Float[Tensor, "b h t 1"]:
    return torch.einsum("bhte,bhte->bht", x, x)[..., None] / x.shape[-1]


def pull_finished(grad: Gates, out: Gates, around: Around) -> tuple[Gates, Scale, Tensor]:
    """Gradients of `out` as it was before, of the scale and of the gate: no numbers for what there is not."""
    assert around.scale is not None
    r = (mean_square(out) + around.norm).rsqrt_()
    normed, of_gate = out * r, grad.new_empty(0)
    if around.gate is not None:
        of_gate = pull_swish((grad * normed).mul_(around.scale), around.gate)
        grad = grad * F.silu(around.gate)
    of_scale = (grad * normed).sum((0, 1, 2))
    grad = grad * around.scale
    return grad.sub(normed.mul_((grad * normed).mean(-1, keepdim=True))).mul_(r), of_scale, of_gate
