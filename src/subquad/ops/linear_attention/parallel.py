"""In PyTorch, all chunks side by side: a number of operations that does not grow with the length.

For devices that wait for each operation longer than it takes. The causal form is that of `sums.py`. Backward
features, sums and weights are made again. Those of exponentials are then exp(log - log of the query's
denominator), which is at most one, so that no number leaves the range and nothing has to be tried twice.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from subquad.ops.linear_attention import FeatureKind, LinearCall, LinearResult, stream
from subquad.ops.linear_attention.sums import (
    CHUNK_TOKENS,
    HEADROOM,
    Exponentials,
    ShiftedStates,
    ShiftedSums,
    Sums,
    causal_exponential_read,
    causal_read,
    collect,
    collect_exponentials,
    divide,
    mask_keys,
    running_max,
    running_sums,
    split,
    with_ones,
)
from subquad.ops.shared.allocation import empty_result
from subquad.ops.shared.fading import fading_states
from subquad.ops.shared.parallel import why_not_parallel
from subquad.ops.shared.precision import wide, widened
from subquad.ops.shared.segments import chunked, segment_tokens, times, unchunked

LARGEST = 30.0  # exponent of a weight over its product of features, so that products with it stay in range


def refuses(call: LinearCall) -> str | None:
    return why_not_parallel(call.q)


def forward(call: LinearCall) -> LinearResult:
    return causal(call) if call.causal else bidirectional(call)


def step(call: LinearCall) -> tuple[Tensor, Sums | ShiftedSums]:
    """The next tokens of a stream."""
    return stream.scan_tokens(call, tokens=segment(call))


step_with_gradients = step


def backward(grad: Tensor, call: LinearCall, result: LinearResult) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    dq, dk, dv = gradients = [empty_result(x) for x in call[:3]]
    if call.causal:
        causal_backward(grad, call, result, *gradients)
    else:
        bidirectional_backward(grad, call, result, *gradients)
    if call.valid is not None:
        padding = ~call.valid[:, None, :, None]
        dk.masked_fill_(padding, 0)
        dv.masked_fill_(padding, 0)
    return dq, dk, dv


def segment(call: LinearCall) -> int:
    """Tokens that are taken at once."""
    f, e = call.features, call.v.shape[3]
    each = 4 * f + 2 * e  # numbers of a token, forward and back
    if call.causal:
        each += 2 * f + 4 * CHUNK_TOKENS + 4 * f * e // CHUNK_TOKENS
    return segment_tokens(call.q, each, multiple=CHUNK_TOKENS)


def segments(call: LinearCall, length: int) -> Iterator[slice]:
    """At least one."""
    size = segment(call)
    return (slice(start, start + size) for start in range(0, max(length, 1), size))


def queries(call: LinearCall, here: slice) -> Tensor:
    """Features of some queries, or the logarithms of exponentials."""
    (q,) = wide(call.q[:, :, here])
    if call.W is not None:
        return q @ call.W.to(q.dtype).mT
    return stream.elu(q) if call.kind == FeatureKind.ELU else q


def keys(call: LinearCall, here: slice) -> Tensor:
    """The same of some keys: none of padding."""
    (k,) = wide(call.k[:, :, here])
    valid = None if call.valid is None else call.valid[:, here]
    if call.W is not None:
        length = mask_keys(torch.linalg.vector_norm(k, dim=-1, keepdim=True), valid, math.inf)
        return (k @ call.W.to(k.dtype).mT).addcmul_(length, length, value=-stream.half(k))
    k = stream.elu(k) if call.kind == FeatureKind.ELU else k
    return mask_keys(k, valid, -math.inf if call.kind.exponential else 0)


def values(call: LinearCall, here: slice) -> Tensor:
    (v,) = wide(call.v[:, :, here])
    return with_ones(v)


def upstream(grad: Tensor, call: LinearCall, result: LinearResult, here: slice) -> Tensor:
    """The gradients of some numerators and, in the last column, denominators; of exponentials as if those
    were one.
    """
    g, out = wide(grad[:, :, here], result.out[:, :, here])
    if not call.kind.exponential:
        denominator = result.denominator[:, :, here, None]
        g = g * denominator.reciprocal().masked_fill_(denominator == 0, 0)
    return torch.cat([g, (g * out).sum(-1, keepdim=True).neg_()], -1)


def queries_backward(dphi: Tensor, phi: Tensor, call: LinearCall) -> Tensor:
    """The gradient of queries, from that of their features or logarithms."""
    if call.W is not None:
        return dphi @ call.W.to(dphi.dtype)
    return dphi * phi.clamp(max=1) if call.kind == FeatureKind.ELU else dphi


def keys_backward(dphi: Tensor, phi: Tensor, call: LinearCall, here: slice) -> Tensor:
    dk = queries_backward(dphi, phi, call)
    if call.W is None:
        return dk
    (k,) = wide(call.k[:, :, here])
    return dk.addcmul_(dphi.sum(-1, keepdim=True), k, value=-2 * stream.half(k))


def bidirectional(call: LinearCall) -> LinearResult:
    q, k, v = call[:3]
    sums = None
    for here in segments(call, k.shape[2]):
        sums = collected(call, here, sums)
    assert sums is not None
    out, denominator = empty_result(v, *q.shape[:3], v.shape[3]), sums.z.new_zeros(q.shape[:3])
    if isinstance(sums, ShiftedSums):  # averages, under the logarithms of their denominators
        z = sums.z.clamp(min=torch.finfo(sums.z.dtype).tiny)
        sums = ShiftedSums(sums.S / z, torch.ones_like(z), sums.c + z.mT.log())
        for here in segments(call, q.shape[2]):
            out[:, :, here] = (queries(call, here) + sums.c).softmax(-1) @ sums.S
        return LinearResult(out, denominator, sums, CHUNK_TOKENS)
    both = torch.cat(sums, -1)
    for here in segments(call, q.shape[2]):
        numerator, total = split(queries(call, here) @ both)
        out[:, :, here] = divide(numerator, total)
        denominator[:, :, here] = total[..., 0]
    return LinearResult(out, denominator, ShiftedSums(*sums, torch.zeros_like(sums.z.mT)), CHUNK_TOKENS)


def bidirectional_backward(
    grad: Tensor, call: LinearCall, result: LinearResult, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    sums, both = result.sums, torch.cat(result.sums[:2], -1)
    dboth = torch.zeros_like(both)
    for here in segments(call, dq.shape[2]):
        g, phi = upstream(grad, call, result, here), queries(call, here)
        dphi = g @ both.mT
        if call.kind.exponential:
            phi = (phi + sums.c).softmax(-1)
            dphi.mul_(phi)
        dboth += phi.mT @ g
        dq[:, :, here] = queries_backward(dphi, phi, call)
    for here in segments(call, dk.shape[2]):
        phi = keys(call, here)
        dphi = values(call, here) @ dboth.mT
        if call.kind.exponential:
            phi = phi.sub(sums.c).exp_()
            dphi.mul_(phi)
        dv[:, :, here] = phi @ dboth[..., :-1]
        dk[:, :, here] = keys_backward(dphi, phi, call, here)


def causal(call: LinearCall) -> LinearResult:
    q, _, v = call[:3]
    out, sums = empty_result(v, *q.shape[:3], v.shape[3]), None
    denominator = out.new_empty(q.shape[:3], dtype=widened(v.dtype))
    for here in segments(call, q.shape[2]):
        phi_q, phi_k, (value,) = queries(call, here), keys(call, here), wide(v[:, :, here])
        if call.kind.exponential:
            assert not isinstance(sums, Sums)
            of_q, of_k = Exponentials(phi_q), Exponentials(phi_k)
            weighted, top, sums = causal_exponential_read(of_q, of_k, value, valid=None, state=sums)
            numerator, total = split(weighted)
            denominator[:, :, here] = (top + total.log())[..., 0]
        else:
            assert not isinstance(sums, ShiftedSums)
            weighted, sums = causal_read(phi_q, phi_k, value, valid=None, state=sums)
            numerator, total = split(weighted)
            denominator[:, :, here] = total[..., 0]
        out[:, :, here] = divide(numerator, total)
    assert sums is not None
    c = sums.c if isinstance(sums, ShiftedSums) else torch.zeros_like(sums.z.mT)
    return LinearResult(
        out, denominator, ShiftedSums(sums.S.contiguous(), sums.z.contiguous(), c), CHUNK_TOKENS
    )


def causal_backward(
    grad: Tensor, call: LinearCall, result: LinearResult, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    cuts = list(segments(call, dq.shape[2]))
    states: list[Sums | ShiftedSums | None] = [None]
    for here in cuts[:-1]:
        states.append(collected(call, here, states[-1]))
    after = None
    for here, state in zip(reversed(cuts), reversed(states), strict=True):
        q, k, v = queries(call, here), keys(call, here), values(call, here)
        g = upstream(grad, call, result, here)
        if call.kind.exponential:
            assert not isinstance(state, Sums)
            log = result.denominator[:, :, here, None]
            dphi_q, dphi_k, dvalue, after = of_exponentials(g, q, k, v, log, state, after)
        else:
            assert not isinstance(state, ShiftedSums)
            dphi_q, dphi_k, dvalue, after = of_features(g, q, k, v, state, after)
        dq[:, :, here] = queries_backward(dphi_q, q, call)
        dk[:, :, here] = keys_backward(dphi_k, k, call, here)
        dv[:, :, here] = dvalue[..., :-1]


def of_features(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Sums | None, after: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, values and the sums before the first key, `after` being that of the last."""
    length = q.shape[2]
    g, q, k, v = (chunked(x, CHUNK_TOKENS) for x in (g, q, k, v))
    states = running_sums(k.mT @ v, None if state is None else torch.cat(state, -1))
    pulled = (q.mT @ g).flip(2)
    due = running_sums(pulled, after)
    before, due = due[:, :, -1] + pulled[:, :, -1], due.flip(2)
    of_weights = (g @ v.mT).tril_()
    dq = times(of_weights, k, g @ states.mT)
    dk = times(of_weights.mT, q, v @ due.mT)
    dv = times((q @ k.mT).tril_().mT, g, k @ due)
    return unchunked(dq, length), unchunked(dk, length), unchunked(dv, length), before


def of_exponentials(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log: Tensor,
    state: ShiftedSums | None,
    after: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, for logarithms of features `q` and `k`, and `log` of denominators."""
    length = q.shape[2]
    g, v, log = (
        chunked(g, CHUNK_TOKENS),
        chunked(v, CHUNK_TOKENS),
        chunked(log, CHUNK_TOKENS, padding=math.inf),
    )
    q, k = (chunked(x, CHUNK_TOKENS, padding=-math.inf) for x in (q, k))
    log = log.masked_fill(log == -math.inf, math.inf)  # of queries that see nothing

    c = running_max(k, dim=-2)
    phi_k = (k - c).exp_()
    states = ShiftedStates.of(phi_k.mT @ v, c, state)
    phi_q = (q + states.c[:, :, :-1]).sub_(log).exp_()
    due, before = fading_states((phi_q.mT @ g).flip(2), states.log_decay.flip(2), after)
    due = due.flip(2).mul_(states.own.exp().mT)
    dq, dk, dv = phi_q.mul_(g @ states.before.mT), phi_k * (v @ due.mT), phi_k @ due

    r, m = running_max(q, dim=-1), running_max(k, dim=-1)
    phi_q, phi_k = (q - (r - HEADROOM)).exp_(), (k - (m - HEADROOM)).exp_()
    scale = (m.mT + (r - log - 2 * HEADROOM)).clamp_(max=LARGEST).exp_().tril_()
    of_product = (g @ v.mT).mul_(scale)
    dq.addcmul_(phi_q, of_product @ phi_k)
    dk.addcmul_(phi_k, of_product.mT @ phi_q)
    dv = times((phi_q @ phi_k.mT).mul_(scale).mT, g, dv)
    return unchunked(dq, length), unchunked(dk, length), unchunked(dv, length), before


def collected(call: LinearCall, here: slice, sums: Sums | ShiftedSums | None) -> Sums | ShiftedSums:
    """The sums with some more keys."""
    phi, (v,) = keys(call, here), wide(call.v[:, :, here])
    if call.kind.exponential:
        assert not isinstance(sums, Sums)
        return collect_exponentials(Exponentials(phi), v, valid=None, sums=sums)
    assert not isinstance(sums, ShiftedSums)
    return collect(phi, v, valid=None, sums=sums)
