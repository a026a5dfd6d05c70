"""Averages of values under a kernel that factorises: a(q, k) = phi(q) . phi(k).

    out_i = sum_j a(q_i, k_j) v_j / sum_j a(q_i, k_j) = phi(q_i)^T S / phi(q_i)^T z
    S = sum_j phi(k_j) v_j^T,    z = sum_j phi(k_j)

Bidirectional sums run over all keys. Causal ones go by chunks that lie side by side: keys before a chunk act
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
from torch.nn import functional as F

from subquad.ops.shared.fading import fading_states, preceded
from subquad.ops.shared.segments import chunked, times, unchunked

Features = Float[Tensor, "b h t f"]
KeyFeatures = Float[Tensor, "b h s f"]
Valid = Bool[Tensor, "b s"]
Weighted = Float[Tensor, "b h t _"]  # sums of values, and in the last column of weights

CHUNK_TOKENS = 128  # states at chunks, and weights inside, are then each some m numbers a token

# Two factors of exp(HEADROOM) and a sum over 10^3 features stay below the largest float32.
HEADROOM = 40.0


class Exponentials(NamedTuple):
    """Features amplitude * exp(log); `log` may have one column for all."""

    log: Float[Tensor, "*b t #f"]
    amplitude: Float[Tensor, "*b t f"] | None = None  # None: all are one

    def chunked(self) -> "Exponentials":
        """In chunks, with none behind the last token."""
        amplitude = None if self.amplitude is None else chunked(self.amplitude, CHUNK_TOKENS)
        return Exponentials(chunked(self.log, CHUNK_TOKENS, padding=-math.inf), amplitude)

    def shifted(self, log: Float[Tensor, "*b t #f"]) -> Float[Tensor, "*b t _"]:
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
    """What queries get that see the keys of `state`, and the others up to themselves; chunks side by side."""
    if q.shape[2] == 1:
        sums = collect(k, v, valid=valid, sums=state)
        return read_sums(q, sums), sums
    weighted, sums = causal_read(q, k, v, valid=valid, state=state)
    return divide(*split(weighted)), sums


def causal_read(
    q: Features, k: KeyFeatures, v: Float[Tensor, "b h s e"], *, valid: Valid | None, state: Sums | None
) -> tuple[Weighted, Sums]:
    """Its numerators and denominators."""
    length = q.shape[2]
    q, k, v = (chunked(x, CHUNK_TOKENS) for x in (q, mask_keys(k, valid, 0), with_ones(v)))
    written = k.mT @ v
    before = running_sums(written, None if state is None else torch.cat([state.S, state.z], -1))
    weighted = times((q @ k.mT).tril(), v, q @ before)
    return unchunked(weighted, length), Sums(*split(before[:, :, -1] + written[:, :, -1]))


def running_sums(
    written: Float[Tensor, "b h n f e"], first: Float[Tensor, "b h f e"] | None
) -> Float[Tensor, "b h n f e"]:
    """The sums before each chunk, if there was `first` before the first."""
    return preceded(written[:, :, :-1], first).cumsum(2)


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
    return divide(*split(shifted_read(q, torch.cat([sums.S, sums.z], -1), sums.c)[0]))


def shifted_read(
    q: Exponentials, S: Float[Tensor, "*b f e"], c: Float[Tensor, "*b 1 #f"]
) -> tuple[Float[Tensor, "*b t e"], Float[Tensor, "*b t 1"]]:
    """What queries read of sums under the shifts `c`, to be multiplied by the exp of the second."""
    b = running_max(q.log + c, dim=-1)
    return q.shifted(q.log + c - b) @ S, b


def causal_exponential_average(
    q: Exponentials,
    k: Exponentials,
    v: Float[Tensor, "b h s e"],
    *,
    valid: Valid | None,
    state: ShiftedSums | None,
) -> tuple[Float[Tensor, "b h t e"], ShiftedSums]:
    """What queries get that see the keys of `state`, and the others up to themselves; chunks side by side."""
    if v.shape[2] == 1:
        sums = collect_exponentials(k, v, valid=valid, sums=state)
        return read_exponentials(q, sums), sums
    weighted, _, sums = causal_exponential_read(q, k, v, valid=valid, state=state)
    return divide(*split(weighted)), sums


def causal_exponential_read(
    q: Exponentials,
    k: Exponentials,
    v: Float[Tensor, "b h s e"],
    *,
    valid: Valid | None,
    state: ShiftedSums | None,
) -> tuple[Weighted, Float[Tensor, "b h t 1"], ShiftedSums]:
    """Its numerators and denominators, to be multiplied by the exp of the second."""
    length = v.shape[2]
    k = Exponentials(mask_keys(k.log, valid, -math.inf), k.amplitude)
    q, k, v = q.chunked(), k.chunked(), chunked(with_ones(v), CHUNK_TOKENS)
    c = running_max(k.log, dim=-2)
    states = ShiftedStates.of(k.shifted(k.log - c).mT @ v, c, state)
    inside, a = inside_chunk(q, k, v)
    earlier, b = shifted_read(q, states.before, states.c[:, :, :-1])
    top = torch.maximum(a, b)
    weighted = (a - top).exp() * inside + (b - top).exp() * earlier
    last = ShiftedSums(*split(states.last), states.c[:, :, -1])
    return unchunked(weighted, length), unchunked(top, length), last


class ShiftedStates(NamedTuple):
    """Sums before each chunk under the largest exponents so far, and the last."""

    before: Float[Tensor, "b h n f e"]
    last: Float[Tensor, "b h f e"]
    c: Float[Tensor, "b h _ 1 #f"]
    own: Float[Tensor, "b h n 1 #f"]  # at most 0: the exponents of a chunk's own sums under those after it
    log_decay: Float[Tensor, "b h n #f"]  # what is left of sums, when a chunk raises their shifts

    @classmethod
    def of(
        cls, written: Float[Tensor, "b h n f e"], c: Float[Tensor, "b h n 1 #f"], state: ShiftedSums | None
    ) -> "ShiftedStates":
        """From each chunk's own sums, under shifts `c` of their own."""
        lowest = torch.full_like(c[:, :, 0], torch.finfo(c.dtype).min / 8) if state is None else state.c
        raised = preceded(c, lowest).cummax(2).values
        own, log_decay = c - raised[:, :, 1:], (raised[:, :, :-1] - raised[:, :, 1:])[:, :, :, 0]
        first = None if state is None else torch.cat([state.S, state.z], -1)
        before, last = fading_states(own.exp().mT * written, log_decay, first)
        return cls(before, last, raised, own, log_decay)


def inside_chunk(
    q: Exponentials, k: Exponentials, v: Float[Tensor, "*b t e"]
) -> tuple[Float[Tensor, "*b t e"], Float[Tensor, "*b t 1"]]:
    """What queries get of a chunk's own keys up to themselves, to be multiplied by the exp of the second."""
    r, m = running_max(q.log, dim=-1), running_max(k.log, dim=-1)
    product = q.shifted(q.log - (r - HEADROOM)) @ k.shifted(k.log - (m - HEADROOM)).mT
    past = torch.ones(product.shape[-2:], dtype=torch.bool, device=v.device).tril()
    seen = m.mT.masked_fill(~past, -math.inf)
    M = running_max(seen, dim=-1)
    weights = product * (seen - M).exp()
    peak = weights.detach().abs().amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == 0, 1)
    return (weights / peak) @ v, r + M + peak.log() - 2 * HEADROOM


def running_max(x: Float[Tensor, "*shape"], *, dim: int) -> Float[Tensor, "..."]:
    """The maximum along `dim`, kept, without gradient; finite even where nothing is seen."""
    x = x.detach()
    floor = torch.finfo(x.dtype).min / 8  # sums of a few of these stay finite
    if x.shape[dim] == 0:
        return x.sum(dim, keepdim=True) + floor
    return x.amax(dim, keepdim=True).clamp(min=floor)


def with_ones(v: Float[Tensor, "*b t e"]) -> Float[Tensor, "*b t _"]:
    """Values with one for their weights to be summed with."""
    return F.pad(v, (0, 1), value=1.0)


def split(weighted: Float[Tensor, "*b t _"]) -> tuple[Float[Tensor, "*b t e"], Float[Tensor, "*b t 1"]]:
    """Sums of values, and of weights."""
    return weighted[..., :-1], weighted[..., -1:]


def divide(
    numerator: Float[Tensor, "b h t e"], denominator: Float[Tensor, "b h t 1"]
) -> Float[Tensor, "b h t e"]:
    """Their ratio; zero, with gradient zero, for a query that sees no key."""
    return numerator / denominator.masked_fill(denominator == 0, 1)


def mask_keys(k: KeyFeatures, valid: Valid | None, value: float) -> KeyFeatures:
    """The features of keys with `value` in padding: phi(0) is not zero."""
    return k if valid is None else k.masked_fill(~valid[:, None, :, None], value)
