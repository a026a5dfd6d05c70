"""The next tokens of a stream in plain PyTorch, which gradients flow through."""

import torch
from torch import Tensor

from subquad.ops.linear_attention import FeatureKind, LinearCall
from subquad.ops.linear_attention.sums import (
    Exponentials,
    ShiftedSums,
    Sums,
    causal_average,
    causal_exponential_average,
)
from subquad.ops.shared.precision import wide
from subquad.ops.shared.scan import scan


def scan_tokens(call: LinearCall, *, tokens: int) -> tuple[Tensor, Sums | ShiftedSums]:
    """The call's outputs and the sums after it, so many tokens at a time."""
    kind, (like,) = call.kind, wide(call.v[:0])
    W = None if call.W is None else call.W.to(like.dtype)

    def average(q: Tensor, k: Tensor, v: Tensor, *, valid: Tensor | None, state: Sums | ShiftedSums | None):
        q, k, v = wide(q, k, v)
        if W is not None:
            q, k = q @ W.mT, log_keys(k, W)
        if kind.exponential:
            assert not isinstance(state, Sums)
            return causal_exponential_average(Exponentials(q), Exponentials(k), v, valid=valid, state=state)
        if kind == FeatureKind.ELU:
            q, k = elu(q), elu(k)
        assert not isinstance(state, ShiftedSums)
        return causal_average(q, k, v, valid=valid, state=state)

    out, after = scan(average, *call[:3], valid=call.valid, state=call.before, chunk=tokens)
    return out.to(call.v.dtype), after


def log_keys(k: Tensor, W: Tensor) -> Tensor:
    """Logarithms of FAVOR's features."""
    return k @ W.mT - k.square().sum(-1, keepdim=True) * half(k)


def half(k: Tensor) -> float:
    """Of 1 / sqrt(d), in the features of FAVOR."""
    return 0.5 * k.shape[-1] ** -0.5


def elu(x: Tensor) -> Tensor:
    """elu(x) + 1, which does not round to zero."""
    return torch.maximum(x + 1, x.clamp(max=0).exp_())  # exp(x) is never below x + 1
