"""The averages of `linear_attention.py` in PyTorch's operators: in chunks, and in place.

What `native/linear.cpp` does, written with tensors, for any device and precision. Nothing of size tokens x
features is kept: the backward pass makes the features of each chunk again. What is of half precision is
widened by chunks, and everything but results is in float32 at least.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from subquad.ops.allocation import empty_result
from subquad.ops.kernel_sums import ShiftedSums
from subquad.ops.native.linear import Map, exponential
from subquad.ops.precision import wide

Upstream = Callable[[slice], tuple[Tensor, Tensor]]  # the gradients of some numerators and denominators

WIDE, FEATURES = 512, 2**15  # where every query sees every key: tokens of a chunk, and features of a head


class Tiles:
    """Features of queries and keys, chunk by chunk, under shifts that grow with the keys."""

    def __init__(self, k: Tensor, v: Tensor, W: Tensor | None, valid: Tensor | None, *, map: Map) -> None:
        self.map, self.valid = map, valid
        self.W = None if W is None else W.to(torch.promote_types(k.dtype, torch.float32))
        self.half = 0.5 * k.shape[-1] ** -0.5
        self.features = k.shape[-1] if W is None else len(W)
        self.k, self.v = k, v

    def empty(self) -> ShiftedSums:
        """The sums before the first key."""
        return nothing(self.v, features=self.features)

    def queries(self, q: Tensor, c: Tensor) -> Tensor:
        if self.map == Map.GIVEN:
            return q
        if self.map == Map.ELU:
            return elu(q)
        log = q + c if self.W is None else (q @ self.W.mT).add_(c)
        return log.sub_(log.amax(-1, keepdim=True)).exp_()

    def keys(self, here: slice, c: Tensor) -> tuple[Tensor, Tensor]:
        """Features of some keys, and the shifts with them; `c` are those before."""
        (k,) = wide(self.k[:, :, here])
        padding = None if self.valid is None else ~self.valid[:, None, here, None]
        if not exponential(self.map):
            phi = k if self.map == Map.GIVEN else elu(k)
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

    def pull(self, change: Tensor, phi: Tensor, x: Tensor, *, key: bool) -> Tensor:
        """From the gradient of features, which is overwritten, to that of queries or keys `x`."""
        if self.map == Map.GIVEN:
            return change
        if self.map == Map.ELU:
            return change.mul_(phi.clamp(max=1))
        change.mul_(phi)
        if self.W is None:
            return change
        pulled = change @ self.W
        return pulled.sub_(change.sum(-1, keepdim=True) * (2 * self.half) * x) if key else pulled


def nothing(v: Tensor, *, features: int) -> ShiftedSums:
    """The sums of no keys, under shifts below any other."""
    (b, h, _, e), (v,) = v.shape, wide(v[:0])
    shifts = v.new_full((b, h, 1, features), torch.finfo(v.dtype).min / 8)
    return ShiftedSums(v.new_zeros(b, h, features, e), v.new_zeros(b, h, features, 1), shifts)


def elu(x: Tensor) -> Tensor:
    """elu(x) + 1, which does not round to zero."""
    return x.clamp(max=0).exp_().add_(x.clamp(min=0))


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


def raised(pull: ShiftedSums, c: Tensor) -> ShiftedSums:
    """What later queries bring, when it comes to keys under earlier, smaller shifts; in place."""
    if c is pull.c:
        return pull
    scale = (c - pull.c).exp_().mT
    return ShiftedSums(pull.S.mul_(scale), pull.z.mul_(scale), c)


def add(sums: ShiftedSums, phi: Tensor, x: Tensor, weight: Tensor | None = None) -> ShiftedSums:
    """The sums with more of phi x^T and of phi, or of phi times `weight`; in place."""
    b, h, f, e = sums.S.shape
    sums.S.view(b * h, f, e).baddbmm_(phi.flatten(0, 1).mT, x.flatten(0, 1))
    sums.z.add_((phi if weight is None else phi * weight).sum(2)[..., None])
    return sums


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Tensor | None,
    valid: Tensor | None,
    *,
    map: Map,
    causal: bool,
    chunk: int = 64,
) -> tuple[Tensor, Tensor, ShiftedSums]:
    """Outputs, denominators and sums; `chunk` is for the causal form, which may leave the range."""
    tiles = Tiles(k, v, W, valid, map=map)
    sums = tiles.empty()
    out, den = empty_result(v, *q.shape[:3], v.shape[3]), sums.S.new_empty(q.shape[:3])
    cuts = chunks(k.shape[2], chunk) if causal else wide_chunks(k.shape[2], tiles.features)
    for here in cuts:
        phi, c = tiles.keys(here, sums.c)
        sums, (value,) = shifted(sums, c), wide(v[:, :, here])
        if causal:
            phi_q = tiles.queries(wide(q[:, :, here])[0], c)
            inside = (phi_q @ phi.mT).tril_()
            total = (phi_q @ sums.z).add_(inside.sum(-1, keepdim=True))
            torch.div((phi_q @ sums.S).add_(inside @ value), seen(total), out=out[:, :, here])
            den[:, :, here] = total[..., 0]
        sums = add(sums, phi, value)
    if not causal:
        for here in wide_chunks(q.shape[2], tiles.features):
            phi_q = tiles.queries(wide(q[:, :, here])[0], sums.c)
            total = phi_q @ sums.z
            torch.div(phi_q @ sums.S, seen(total), out=out[:, :, here])
            den[:, :, here] = total[..., 0]
    return out, den, sums


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Tensor | None,
    valid: Tensor | None,
    out: Tensor,
    den: Tensor,
    sums: ShiftedSums,
    *,
    map: Map,
    causal: bool,
    chunk: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, with the chunks of `forward`."""
    tiles = Tiles(k, v, W, valid, map=map)
    found = [empty_result(x) for x in (q, k, v)]

    def g(here: slice) -> tuple[Tensor, Tensor]:
        return upstream(grad, out, den, here)

    if causal:
        causal_sweep(tiles, q, g, chunks(k.shape[2], chunk), *found)
    else:
        whole_sweep(tiles, q, g, sums, *found)
    if valid is not None:
        for x in found[1:]:
            x.masked_fill_(~valid[:, None, :, None], 0)
    return found[0], found[1], found[2]


def whole_sweep(
    tiles: Tiles, q: Tensor, upstream: Upstream, sums: ShiftedSums, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    k, v = tiles.k, tiles.v
    pull = tiles.empty()
    for here in wide_chunks(q.shape[2], tiles.features):
        (g, gd), (x,) = upstream(here), wide(q[:, :, here])
        phi = tiles.queries(x, sums.c)
        change = (g @ sums.S.mT).addcmul_(gd, sums.z.mT)
        pull = add(pull, phi, g, gd)
        dq[:, :, here] = tiles.pull(change, phi, x, key=False)
    for here in wide_chunks(k.shape[2], tiles.features):
        phi, _ = tiles.keys(here, sums.c)
        dv[:, :, here] = phi @ pull.S
        x, value = wide(k[:, :, here], v[:, :, here])
        change = (value @ pull.S.mT).add_(pull.z.mT)
        dk[:, :, here] = tiles.pull(change, phi, x, key=True)


def causal_sweep(
    tiles: Tiles, q: Tensor, upstream: Upstream, cuts: list[slice], dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    k, v, sums, shifts = tiles.k, tiles.v, tiles.empty(), []
    for here in cuts:
        (g, gd), (x, value) = upstream(here), wide(q[:, :, here], v[:, :, here])
        phi, c = tiles.keys(here, sums.c)
        sums = shifted(sums, c)
        shifts.append(c)
        phi_q = tiles.queries(x, c)
        mixed = (g @ value.mT).add_(gd).tril_()
        change = (g @ sums.S.mT).addcmul_(gd, sums.z.mT).add_(mixed @ phi)
        dq[:, :, here] = tiles.pull(change, phi_q, x, key=False)
        sums = add(sums, phi, value)
    pull = tiles.empty()
    pull = pull._replace(c=sums.c)
    for here, c in zip(reversed(cuts), reversed(shifts), strict=True):
        (g, gd), (own, x, value) = upstream(here), wide(*(y[:, :, here] for y in (q, k, v)))
        pull = raised(pull, c)
        phi = tiles.keys(here, c)[0]
        phi_q = tiles.queries(own, c)
        inside = (phi_q @ phi.mT).tril_()
        mixed = (g @ value.mT).add_(gd).tril_()
        dv[:, :, here] = (phi @ pull.S).add_(inside.mT @ g)
        change = (value @ pull.S.mT).add_(pull.z.mT).add_(mixed.mT @ phi_q)
        dk[:, :, here] = tiles.pull(change, phi, x, key=True)
        pull = add(pull, phi_q, g, gd)


def upstream(grad: Tensor, out: Tensor, den: Tensor, here: slice) -> tuple[Tensor, Tensor]:
    """The gradients of some numerators and denominators."""
    g, o = wide(grad[:, :, here], out[:, :, here])
    g = (g / seen(den[:, :, here])[..., None]).masked_fill_((den[:, :, here] == 0)[..., None], 0)
    return g, -(g * o).sum(-1, keepdim=True)


def seen(den: Tensor) -> Tensor:
    return den.masked_fill(den == 0, 1)
