"""In PyTorch, for any device and precision: in chunks, and in place.

What native/linear.cpp does, written with tensors. Nothing of size tokens x features is kept: the backward
pass makes the features of each chunk again. What is of half precision is widened by chunks, and everything
but results is in float32 at least.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from subquad.ops.linear_attention import FeatureKind, LinearCall, LinearResult, stream
from subquad.ops.linear_attention.sums import ShiftedSums, Sums
from subquad.ops.shared.allocation import empty_result
from subquad.ops.shared.precision import wide, widened

Upstream = Callable[[slice], tuple[Tensor, Tensor]]  # the gradients of some numerators and denominators

CHUNKS = (64, 8, 1)  # tokens of a causal chunk, shorter ones are the fallback on underflow
SMALLEST = {torch.float32: 1e-26, torch.float64: 1e-200}  # a denominator below this may have lost terms
WIDE, FEATURES = 512, 2**15  # where every query sees every key: tokens of a chunk, and features of a head


def refuses(call: LinearCall) -> None:
    """It takes every call."""


def forward(call: LinearCall) -> LinearResult:
    first, *shorter = CHUNKS if call.causal and call.kind.exponential else CHUNKS[:1]
    result = averages(call, chunk=first)
    while shorter and out_of_range(result, call.valid):
        result = averages(call, chunk=shorter.pop(0))
    return result


def averages(call: LinearCall, *, chunk: int) -> LinearResult:
    """By causal chunks of this length, whose denominators may leave the range."""
    q, k, v = call[:3]
    tiles = Tiles(call)
    sums = tiles.empty()
    out, denominator = empty_result(v, *q.shape[:3], v.shape[3]), sums.S.new_empty(q.shape[:3])
    cuts = chunks(k.shape[2], chunk) if call.causal else wide_chunks(k.shape[2], call.features)
    for here in cuts:
        phi, c = tiles.keys(here, sums.c)
        sums, (value,) = shifted(sums, c), wide(v[:, :, here])
        if call.causal:
            phi_q = tiles.queries(wide(q[:, :, here])[0], c)
            inside = (phi_q @ phi.mT).tril_()
            total = (phi_q @ sums.z).add_(inside.sum(-1, keepdim=True))
            torch.div((phi_q @ sums.S).add_(inside @ value), seen(total), out=out[:, :, here])
            denominator[:, :, here] = total[..., 0]
        sums = add(sums, phi, value)
    if not call.causal:
        for here in wide_chunks(q.shape[2], call.features):
            phi_q = tiles.queries(wide(q[:, :, here])[0], sums.c)
            total = phi_q @ sums.z
            torch.div(phi_q @ sums.S, seen(total), out=out[:, :, here])
            denominator[:, :, here] = total[..., 0]
    return LinearResult(out, denominator, sums, chunk)


def out_of_range(result: LinearResult, valid: Bool[Tensor, "b t"] | None) -> bool:
    """Whether a query that sees keys has too small a denominator."""
    small = result.denominator <= SMALLEST[result.denominator.dtype]
    if valid is not None:
        small = small & (valid.cumsum(1) > 0)[:, None]
    return bool(small.any())


def step(call: LinearCall) -> tuple[Tensor, Sums | ShiftedSums]:
    """The next tokens of a stream, chunk by chunk."""
    return stream.scan_tokens(call, tokens=CHUNKS[0])


step_with_gradients = step


def backward(grad: Tensor, call: LinearCall, result: LinearResult) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, with the chunks of `forward`."""
    gradients = [empty_result(x) for x in call[:3]]

    def upstream(here: slice) -> tuple[Tensor, Tensor]:
        return of_averages(grad, result, here)

    if call.causal:
        causal_sweep(call, upstream, chunks(call.k.shape[2], result.chunk), *gradients)
    else:
        whole_sweep(call, upstream, result.sums, *gradients)
    if call.valid is not None:
        for x in gradients[1:]:
            x.masked_fill_(~call.valid[:, None, :, None], 0)
    dq, dk, dv = gradients
    return dq, dk, dv


class Tiles:
    """Features of queries and keys, chunk by chunk, under shifts that grow with the keys."""

    def __init__(self, call: LinearCall) -> None:
        self.k, self.kind, self.valid = call.k, call.kind, call.valid
        self.W = None if call.W is None else call.W.to(widened(call.k.dtype))
        self.half = stream.half(call.k)
        (v,) = wide(call.v[:0])
        b, h, _, e = call.v.shape
        self.sizes, self.like = (b, h, call.features, e), v

    def empty(self) -> ShiftedSums:
        """The sums of no keys, under shifts below any other."""
        b, h, f, e = self.sizes
        shifts = self.like.new_full((b, h, 1, f), torch.finfo(self.like.dtype).min / 8)
        return ShiftedSums(self.like.new_zeros(b, h, f, e), self.like.new_zeros(b, h, f, 1), shifts)

    def queries(self, q: Tensor, c: Tensor) -> Tensor:
        if self.kind == FeatureKind.FEATURES:
            return q
        if self.kind == FeatureKind.ELU:
            return stream.elu(q)
        log = q + c if self.W is None else (q @ self.W.mT).add_(c)
        return log.sub_(log.amax(-1, keepdim=True)).exp_()

    def keys(self, here: slice, c: Tensor) -> tuple[Tensor, Tensor]:
        """Features of some keys, and the shifts with them; `c` are those before."""
        (k,) = wide(self.k[:, :, here])
        padding = None if self.valid is None else ~self.valid[:, None, here, None]
        if not self.kind.exponential:
            phi = k if self.kind == FeatureKind.FEATURES else stream.elu(k)
            return (phi if padding is None else phi.masked_fill(padding, 0)), c
        log = (
            k.clone()
            if self.W is None
            else (k @ self.W.mT).sub_(k.square().sum(-1, keepdim=True) * self.half)
        )
        if padding is not None:
            log.masked_fill_(padding, -torch.inf)
        c = torch.maximum(c, log.amax(2, keepdim=True))
        return log.sub_(c).exp_(), c

    def backward(self, dphi: Tensor, phi: Tensor, x: Tensor, *, key: bool) -> Tensor:
        """The gradient of queries or keys `x`, from that of their features, which is overwritten."""
        if self.kind == FeatureKind.FEATURES:
            return dphi
        if self.kind == FeatureKind.ELU:
            return dphi.mul_(phi.clamp(max=1))
        dphi.mul_(phi)
        if self.W is None:
            return dphi
        dx = dphi @ self.W
        return dx.sub_(dphi.sum(-1, keepdim=True) * (2 * self.half) * x) if key else dx


def wide_chunks(length: int, features: int) -> list[slice]:
    """Chunks where every query sees every key, the features of which stay in cache."""
    return chunks(length, max(64, min(WIDE, FEATURES // features)))


def chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def shifted(sums: ShiftedSums, c: Tensor) -> ShiftedSums:
    """The sums under the shifts `c`; in place."""
    if c is sums.c:
        return sums
    scale = (sums.c - c).exp_().mT
    return ShiftedSums(sums.S.mul_(scale), sums.z.mul_(scale), c)


def raised(dsums: ShiftedSums, c: Tensor) -> ShiftedSums:
    """The gradient of sums, when it comes to keys under earlier, smaller shifts; in place."""
    if c is dsums.c:
        return dsums
    scale = (c - dsums.c).exp_().mT
    return ShiftedSums(dsums.S.mul_(scale), dsums.z.mul_(scale), c)


def add(sums: ShiftedSums, phi: Tensor, x: Tensor, weight: Tensor | None = None) -> ShiftedSums:
    """The sums with more of phi x^T and of phi, or of phi times `weight`; in place."""
    b, h, f, e = sums.S.shape
    sums.S.view(b * h, f, e).baddbmm_(phi.flatten(0, 1).mT, x.flatten(0, 1))
    sums.z.add_((phi if weight is None else phi * weight).sum(2)[..., None])
    return sums


def whole_sweep(
    call: LinearCall, upstream: Upstream, sums: ShiftedSums, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    q, k, v = call[:3]
    tiles = Tiles(call)
    dsums = tiles.empty()
    for here in wide_chunks(q.shape[2], call.features):
        (g, gd), (x,) = upstream(here), wide(q[:, :, here])
        phi = tiles.queries(x, sums.c)
        dphi = (g @ sums.S.mT).addcmul_(gd, sums.z.mT)
        dsums = add(dsums, phi, g, gd)
        dq[:, :, here] = tiles.backward(dphi, phi, x, key=False)
    for here in wide_chunks(k.shape[2], call.features):
        phi, _ = tiles.keys(here, sums.c)
        dv[:, :, here] = phi @ dsums.S
        x, value = wide(k[:, :, here], v[:, :, here])
        dphi = (value @ dsums.S.mT).add_(dsums.z.mT)
        dk[:, :, here] = tiles.backward(dphi, phi, x, key=True)


def causal_sweep(
    call: LinearCall, upstream: Upstream, cuts: list[slice], dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    q, k, v = call[:3]
    tiles = Tiles(call)
    sums, shifts = tiles.empty(), []
    for here in cuts:
        (g, gd), (x, value) = upstream(here), wide(q[:, :, here], v[:, :, here])
        phi, c = tiles.keys(here, sums.c)
        sums = shifted(sums, c)
        shifts.append(c)
        phi_q = tiles.queries(x, c)
        dweights = (g @ value.mT).add_(gd).tril_()
        dphi = (g @ sums.S.mT).addcmul_(gd, sums.z.mT).add_(dweights @ phi)
        dq[:, :, here] = tiles.backward(dphi, phi_q, x, key=False)
        sums = add(sums, phi, value)
    dsums = tiles.empty()._replace(c=sums.c)
    for here, c in zip(reversed(cuts), reversed(shifts), strict=True):
        (g, gd), (own, x, value) = upstream(here), wide(*(y[:, :, here] for y in (q, k, v)))
        dsums = raised(dsums, c)
        phi = tiles.keys(here, c)[0]
        phi_q = tiles.queries(own, c)
        weights = (phi_q @ phi.mT).tril_()
        dweights = (g @ value.mT).add_(gd).tril_()
        dv[:, :, here] = (phi @ dsums.S).add_(weights.mT @ g)
        dphi = (value @ dsums.S.mT).add_(dsums.z.mT).add_(dweights.mT @ phi_q)
        dk[:, :, here] = tiles.backward(dphi, phi, x, key=True)
        dsums = add(dsums, phi_q, g, gd)


def of_averages(grad: Tensor, result: LinearResult, here: slice) -> tuple[Tensor, Tensor]:
    """The gradients of some numerators and denominators."""
    g, out = wide(grad[:, :, here], result.out[:, :, here])
    denominator = result.denominator[:, :, here, None]
    g = (g / seen(denominator)).masked_fill_(denominator == 0, 0)
    return g, -(g * out).sum(-1, keepdim=True)


def seen(denominator: Tensor) -> Tensor:
    return denominator.masked_fill(denominator == 0, 1)
