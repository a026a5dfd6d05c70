"""The unbounded long-term memory of the infinity-former: the past as one continuous signal.

A signal over t in [0, 1], from the beginning of the past to its end, is a sum of N Gaussian bumps, whatever
the length of the past:

    X(t) = B^T psi(t),    psi_j(t) = N(t; mu_j, s_j^2)

Writing: L vectors X at t_i = (i - 1/2) / L are fitted by ridge regression, B^T = X^T G, where
G = F^T (F F^T + lambda I)^-1 and F_ji = psi_j(t_i) depend on no data. To write more, the old signal is read
at M points, contracted into [0, tau] and fitted together with the new vectors, which take (tau, 1]. That is
linear in both: with the rows G_past and G_new of G that belong to the points p and to the new vectors,

    B^T <- B^T A + X^T G_new,    A = Psi(p) G_past,    Psi(p)_jm = psi_j(p_m)

Where the points are the same for all writes, so is A, and the signals of all segments come out of products
side by side, two writes being one by A^2 (`accumulated`).

Reading: head by head, a query places a density over t and takes its expectation of the signal:

    s = K q / sqrt(d),    m = sigmoid(w_mu . s + b_mu),    v = softplus(w_sigma . s + b_sigma)
    z = V^T E[psi],       E[psi_j] = integral of p(t; m, v) psi_j(t) dt

where K and V are the coefficients of the keys' and of the values' signal; `memories/reads.py` has p.

Sticky memories: the M points need not be spread evenly. They lie closest where the past was read most, and
these parts of it keep more room after the contraction. Then A depends on where the very signal that it
changes was read, by way of quantiles: each write has to wait for the one before, on every machine.

Martins, Marinho, Martins: infinity-former: Infinite Memory Transformer. ACL 2022, arXiv:2109.00301,
section 3. Departures:
- points are quantiles of the histogram of reads, to the nearest 1/1024 of its mass, and not drawn from it:
  the same input gives the same memory, and a flat histogram gives points spread evenly;
- points and vectors stand in the middle of their share of the interval, in first and later fits alike;
- no zeros are fitted outside [0, 1], as the authors' code does: the signal is not pulled down at its ends;
- each head has its own w_mu, w_sigma, b_mu and b_sigma, and heads begin side by side and sigma_0 wide. The
  authors' code has one w_mu and one w_sigma for all heads, and no b: that is `shared`;
- their variant without w_mu and w_sigma, which takes m and v from a softmax of s over the bumps, is left out.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.memories.reads import (
    DENSITIES,
    Density,
    Gaussian,
    exp_or_zero,
    expectation,
    flush_negligible,
    middles,
)

Signal = Float[Tensor, "b h c n"]  # the coefficients B^T, head by head


class ContinuousMemory(nn.Module):
    """Reads and writes signals that the caller keeps. `basis` bumps, half `narrow`, half `wide`.

    `density`, one of DENSITIES, has variances of `smallest_variance` at least.

    The operators G follow from the options. They are not stored: they are computed in float64, again
    whenever the module is loaded or changes its precision or device, and kept in float32 at least.
    """

    centres: Float[Tensor, " half"]  # of the narrow bumps, and of the wide ones
    curvatures: Float[Tensor, "two 1"]  # of a bump's logarithm, halved
    heights: Float[Tensor, "two 1"]
    G_first: Float[Tensor, "l n"]  # fits one segment
    G_past: Float[Tensor, "m n"]  # fits the contracted past, with one more segment by
    G_new: Float[Tensor, "l n"]

    def __init__(
        self,
        *,
        heads: int,
        segment: int,
        basis: int,
        narrow: float,
        wide: float,
        ridge: float,
        tau: float,
        samples: int,
        deviation: float,
        smallest_variance: float,
        shared: bool,
        density: str,
    ) -> None:
        super().__init__()
        self.smallest_variance, self.density = smallest_variance, DENSITIES[density]
        self.segment, self.basis, self.samples = segment, basis, samples
        self.widths, self.ridge, self.tau = (narrow, wide), ridge, tau
        operators = self._operators()
        for name, operator in operators.items():
            self.register_buffer(
                name,
                flush_negligible(operator.to(torch.get_default_dtype())).to(torch.get_default_device()),
                persistent=False,
            )
        # Queries and keys of unit variance give logits of unit variance at most.
        spread = 1 / math.hypot(*(operators[name].norm().item() for name in ("G_past", "G_new")))
        inverse_softplus = deviation**2 + math.log(-math.expm1(-(deviation**2)))
        rows = 1 if shared else heads
        self.w_mu = nn.Parameter(spread * torch.randn(rows, basis))
        self.b_mu = None if shared else nn.Parameter(middles(heads, like=torch.empty(0)).logit())
        self.w_sigma = nn.Parameter(spread * torch.randn(rows, basis))
        self.b_sigma = None if shared else nn.Parameter(torch.full((heads,), inverse_softplus))

    def logit_weights(self, like: Tensor) -> tuple[Float[Tensor, "*h n two"], Float[Tensor, "#h 1 two"]]:
        """w_mu beside w_sigma, and b_mu beside b_sigma, or zeros."""
        w = torch.stack([self.w_mu, self.w_sigma], -1).to(like.dtype)
        if self.b_mu is None or self.b_sigma is None:
            return w[0], w.new_zeros(1, 1, 2)
        return w, torch.stack([self.b_mu, self.b_sigma], -1).to(like.dtype)[:, None]

    def locate(
        self, q: Float[Tensor, "b h t d"], K_w: Float[Tensor, "b h d two"], b: Float[Tensor, "#h 1 two"]
    ) -> Density:
        """Where the queries read, given the coefficients of the keys' signal times w: w . K q = K^T w . q."""
        mean, variance = torch.add(b, q @ K_w, alpha=q.shape[-1] ** -0.5).unbind(-1)
        return self.density(mean.sigmoid(), F.softplus(variance).clamp(min=self.smallest_variance))

    def read(self, where: Density, V_T: Float[Tensor, "b h e n"]) -> Float[Tensor, "b h t e"]:
        """The expectation of the values' signal."""
        bumps = where.bumps(self.centres.to(V_T.dtype), self.widths)
        narrow, wide = (
            height * (shape @ half.mT) for (height, shape), half in zip(bumps, V_T.chunk(2, -1), strict=True)
        )
        return narrow + wide

    def fit(self, X: Float[Tensor, "b h l c"], *, first: Bool[Tensor, " b"]) -> Signal:
        """What a segment adds to the signal that it is written into, of which the `first` is all."""
        G = torch.where(first[:, None, None], self.G_first, self.G_new).to(X.dtype)
        return (X.mT.flatten(1, 2) @ G).unflatten(1, (X.shape[1], X.shape[3]))

    def refit(self, signal: Signal, points: Float[Tensor, "b m"], added: Signal) -> Signal:
        """The signal of the past, contracted as it is at `points`, with what is `added`."""
        past = signal.flatten(1, 2) @ self.bumps_at(points).mT
        G = self.G_past.to(signal.dtype).expand(len(past), -1, -1)
        return torch.baddbmm(added.flatten(1, 2), past, G).view_as(signal)

    def refits(self, signal: Signal, points: Float[Tensor, " m"], added: list[Signal]) -> list[Signal]:
        """The signals before as many writes and after the last, all of them at the same `points`."""
        A = self.bumps_at(points.double()).mT @ self.G_past.double()
        flat = accumulated(signal.flatten(1, 2), torch.stack(added, 1).flatten(2, 3), A)
        return list(flat.unflatten(2, signal.shape[1:3]).unbind(1))

    def bumps_at(self, points: Float[Tensor, "*b m"]) -> Float[Tensor, "*b m n"]:
        """psi."""
        centres, curvatures, heights = (
            x.to(points.dtype) for x in (self.centres, self.curvatures, self.heights)
        )
        exponents = ((points[..., None] - centres) ** 2)[..., None, :] * curvatures
        return (exp_or_zero(exponents) * heights).flatten(-2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ContinuousMemory":
        super()._apply(fn, recurse)
        self._renew()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._renew()

    def _renew(self) -> None:
        device, dtype = self.w_mu.device, torch.promote_types(self.w_mu.dtype, torch.float32)
        for name, operator in self._operators().items():
            setattr(self, name, flush_negligible(operator.to(dtype)).to(device))

    def _operators(self) -> dict[str, Float[Tensor, "..."]]:
        """The buffers by name, in float64 on the CPU."""
        like = torch.empty(0, dtype=torch.float64, device="cpu")
        centres = torch.linspace(0, 1, self.basis // 2, dtype=like.dtype, device=like.device)
        new = middles(self.segment, like=like)
        past_and_new = torch.cat(
            [self.tau * middles(self.samples, like=like), self.tau + (1 - self.tau) * new]
        )
        widths = torch.tensor(self.widths, dtype=like.dtype, device=like.device)[:, None]
        psi = (
            expectation(Gaussian(t, torch.zeros_like(t)), centres, self.widths) for t in (new, past_and_new)
        )
        G_first, G_later = (ridge_fit(F_T, self.ridge) for F_T in psi)
        return {
            "centres": centres,
            "curvatures": -0.5 / widths**2,
            "heights": (2 * math.pi) ** -0.5 / widths,
            "G_first": G_first,
            "G_past": G_later[: self.samples],
            "G_new": G_later[self.samples :],
        }


def accumulated(
    first: Float[Tensor, "b r n"], added: Float[Tensor, "b s r n"], A: Float[Tensor, "n n"]
) -> Float[Tensor, "b s+1 r n"]:
    """S_0, which is the `first`, to S_s of S_(i+1) = S_i A + added_i.

    Two of these are one, S_(i+2) = S_i A^2 + (added_i A + added_(i+1)), which gives every other S: twice the
    products of a loop, in rounds whose number is logarithmic. A is in float64, for its powers have large
    numbers that cancel.
    """
    count, step = added.shape[1], A.to(first.dtype)
    if count == 0:
        return first[:, None]
    pairs = added[:, : count // 2 * 2].unflatten(1, (count // 2, 2))
    even = accumulated(first, pairs[:, :, 0] @ step + pairs[:, :, 1], A @ A) if count > 1 else first[:, None]
    odd = even[:, : count - count // 2] @ step + added[:, ::2]
    both = torch.stack([even[:, : odd.shape[1]], odd], 2).flatten(1, 2)
    return torch.cat([both, even[:, odd.shape[1] :]], 1)


def ridge_fit(F_T: Float[Tensor, "l n"], ridge: float) -> Float[Tensor, "l n"]:
    """G, for which B = G^T X has the least |F^T B - X|^2 + ridge |B|^2, by the smaller Gram matrix."""
    l, n = F_T.shape
    gram = F_T @ F_T.mT if l < n else F_T.mT @ F_T
    root = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    return torch.cholesky_solve(F_T, root) if l < n else torch.cholesky_solve(F_T.mT, root).mT
