"""Averages of values under a kernel that factorises: a(q, k) = phi(q) . phi(k).

    out_i = sum_j a(q_i, k_j) v_j / sum_j a(q_i, k_j) = phi(q_i)^T S / phi(q_i)^T z
    S = sum_j phi(k_j) v_j^T,    z = sum_j phi(k_j)

Bidirectional sums run over all keys. Causal ones advance a chunk at a time: keys before the chunk act
through (S, z), keys inside it through a masked product, so that the work is matrix products.

The functions named `exponential` take phi as amplitude * exp(log). Exponentials of random features span
hundreds of orders of magnitude, and no one shift keeps them all in range, so every sum carries the shifts
that its own terms need; they cancel in the ratio, and carry no gradient:

    sums over keys   one per feature, c_f = max_j log phi_f(k_j). A query then shifts by
                     b_i = max_f (log phi_f(q_i) + c_f), and without amplitudes its denominator is never
                     below one.
    inside a chunk   one per key, since a prefix has a maximum of its own: the rows of the masked product
                     are scaled by their own largest weight, as in fused softmax.

Amplitudes may be negative. Weights then cancel, and a denominator may be of any sign and as small as it
happens to be: the ratio is what the formula says, however large, and no bound is put under it.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Features = Float[Tensor, "b h t f"]
KeyFeatures = Float[Tensor, "b h s f"]
Valid = Bool[Tensor, "b s"]

# Two factors of exp(HEADROOM) and a sum over 10^3 features stay below the largest float32.
HEADROOM = 40.0


class Exponentials(NamedTuple):
    """Features amplitude * exp(log); `log` may have one column for all."""

    log: Float[Tensor, "b h t #f"]
    amplitude: Features | None = None  # None: all are one

    def shifted(self, log: Float[Tensor, "b h t #f"]) -> Float[Tensor, "b h t _"]:
        """The features with `log` in place of their own exponents, from which it differs by shifts."""
        return log.exp() if self.amplitude is None else self.amplitude * log.exp()


class Sums(NamedTuple):
    """What linear attention remembers of the keys so far."""

    S: Float[Tensor, "b h f e"]
    z: Float[Tensor, "b h f 1"]


class ShiftedSums(NamedTuple):
    """The same, of exponentials: feature f of `S` and `z` stands for itself times exp(c_f)."""

    S: Float[Tensor, "b h f e"]
    z: Float[Tensor, "b h f 1"]
    c: Float[Tensor, "b h 1 #f"]


def collect(k: KeyFeatures, v: Float[Tensor, "b h s e"], *, valid: Valid | None, sums: Sums | None) -> Sums:
    """The sums after some more keys."""
    k = mask_keys(k, valid, 0)
    S, z = k.mT @ v, k.sum(2)[..., None]
    return Sums(S, z) if sums is None else Sums(sums.S + S, sums.z + z)


def read_sums(q: Features, sums: Sums) -> Float[Tensor, "b h t e"]:
    """What queries get that see all of the keys."""
    return divide(q @ sums.S, q @ sums.z)


def causal_average(
    q: Features, k: KeyFeatures, v: Float[Tensor, "b h s e"], *, valid: Valid | None, state: Sums | None
) -> tuple[Float[Tensor, "b h t e"], Sums]:
    """One chunk: every query sees the keys of earlier chunks, and those of its own up to itself."""
    if q.shape[2] == 1:
        sums = collect(k, v, valid=valid, sums=state)
        return read_sums(q, sums), sums
    k = mask_keys(k, valid, 0)
    inside = (q @ k.mT).tril()
    numerator, denominator = inside @ v, inside.sum(-1, keepdim=True)
    if state is not None:
        numerator, denominator = numerator + q @ state.S, denominator + q @ state.z
    return divide(numerator, denominator), collect(k, v, valid=None, sums=state)


def collect_exponentials(
    k: Exponentials, v: Float[Tensor, "b h s e"], *, valid: Valid | None, sums: ShiftedSums | None
) -> ShiftedSums:
    """The sums after some more keys, shifted anew where a feature has a new largest exponent."""
    log_k = mask_keys(k.log, valid, -math.inf)
    c = running_max(log_k, dim=2)
    if sums is None:
        phi_k = k.shifted(log_k - c)
        return ShiftedSums(phi_k.mT @ v, phi_k.sum(2)[..., None], c)
    c = torch.maximum(c, sums.c)
    phi_k, old = k.shifted(log_k - c), (sums.c - c).exp().mT
    return ShiftedSums(old * sums.S + phi_k.mT @ v, old * sums.z + phi_k.sum(2)[..., None], c)


def read_exponentials(q: Exponentials, sums: ShiftedSums) -> Float[Tensor, "b h t e"]:
    """What queries get that see all of the keys."""
    numerator, denominator, _ = shifted_read(q, sums)
    return divide(numerator, denominator)


def shifted_read(
    q: Exponentials, sums: ShiftedSums
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t 1"], Float[Tensor, "b h t 1"]]:
    """Numerator and denominator, to be multiplied by the exp of the third."""
    b = running_max(q.log + sums.c, dim=3)
    phi_q = q.shifted(q.log + sums.c - b)
    return phi_q @ sums.S, phi_q @ sums.z, b


def causal_exponential_average(
    q: Exponentials,
    k: Exponentials,
    v: Float[Tensor, "b h s e"],
    *,
    valid: Valid | None,
    state: ShiftedSums | None,
) -> tuple[Float[Tensor, "b h t e"], ShiftedSums]:
    """One chunk: every query sees the keys of earlier chunks, and those of its own up to itself."""
    if v.shape[2] == 1:
        sums = collect_exponentials(k, v, valid=valid, sums=state)
        return read_exponentials(q, sums), sums
    k = k._replace(log=mask_keys(k.log, valid, -math.inf))
    numerator, denominator, a = inside_chunk(q, k, v)
    if state is not None:
        before, weight, b = shifted_read(q, state)
        top = torch.maximum(a, b)
        numerator = (a - top).exp() * numerator + (b - top).exp() * before
        denominator = (a - top).exp() * denominator + (b - top).exp() * weight
    return divide(numerator, denominator), collect_exponentials(k, v, valid=None, sums=state)


def inside_chunk(
    q: Exponentials, k: Exponentials, v: Float[Tensor, "b h s e"]
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t 1"], Float[Tensor, "b h t 1"]]:
    """Numerator and denominator of a chunk's own keys, to be multiplied by the exp of the third."""
    r, m = running_max(q.log, dim=3), running_max(k.log, dim=3)
    product = q.shifted(q.log - r + HEADROOM) @ k.shifted(k.log - m + HEADROOM).mT
    past = torch.ones(product.shape[-2:], dtype=torch.bool, device=v.device).tril()
    seen = m.mT.masked_fill(~past, -math.inf)
    M = running_max(seen, dim=3)
    weights = product * (seen - M).exp()
    peak = weights.detach().abs().amax(-1, keepdim=True) if weights.shape[-1] else weights.new_zeros(r.shape)
    peak = peak.masked_fill(peak == 0, 1)
    weights = weights / peak
    return weights @ v, weights.sum(-1, keepdim=True), r + M + peak.log() - 2 * HEADROOM


def running_max(x: Float[Tensor, "*shape"], *, dim: int) -> Float[Tensor, "..."]:
    """The maximum along `dim`, kept, without gradient; finite even where nothing is seen."""
    x = x.detach()
    floor = torch.finfo(x.dtype).min / 8  # sums of a few of these stay finite
    if x.shape[dim] == 0:
        return x.sum(dim, keepdim=True) + floor
    return x.amax(dim, keepdim=True).clamp(min=floor)


def divide(
    numerator: Float[Tensor, "b h t e"], denominator: Float[Tensor, "b h t 1"]
) -> Float[Tensor, "b h t e"]:
    """Their ratio; zero, with gradient zero, for a query that sees no key."""
    return numerator / denominator.masked_fill(denominator == 0, 1)


def mask_keys(k: KeyFeatures, valid: Valid | None, value: float) -> KeyFeatures:
    """The features of keys with `value` in padding: phi(0) is not zero."""
    return k if valid is None else k.masked_fill(~valid[:, None, :, None], value)
