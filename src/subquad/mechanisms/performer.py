"""Performer: softmax attention estimated by random features (FAVOR+), and its generalised kernels.

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)
    phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(f),    x' = x / d^(1/4),    rows of W ~ N(0, I)

E[phi(q) . phi(k)] = exp(q . k / sqrt(d)), so that as f grows the weights tend to softmax attention's. The
error falls as f^(-1/2) and grows exponentially with the norms of queries and keys: the relative variance of
a weight is (exp(|q' + k'|^2) - 1) / f. Once it exceeds one, outputs look sound and mean nothing; nothing
overflows. `estimate_error` tells, and `normalise` prevents it.

`features/favor.py` has the positive, hyperbolic and trigonometric features, `features/generalised.py` those
of other kernels, `features/directions.py` how W is drawn.

Choromanski et al.: Rethinking Attention with Performers. ICLR 2021, arXiv:2009.14794, sections 2 and 3;
redrawing, section 4.2 and the authors' code.
Departs from the authors' code:

- in its stabiliser: no epsilon is added to the exponential features, and the shift of keys is a running
  maximum, so that causal outputs do not depend on the future even by rounding;
- in the directions, whose distribution is exactly that of the paper (theirs lack the signs of Haar's);
- W is drawn anew only where `redraw_every` asks for it, and never in eval mode;
- signed weights (trigonometric, gelu) are divided by their sum as it is, near zero or below it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.bounds import Count, Positive, Steps, one_of
from subquad.features.directions import LENGTHS, Projection, Scaling, Unprojected, scaled
from subquad.features.favor import Favor, Hyperbolic, Trigonometric
from subquad.features.feature_map import FeatureMap
from subquad.features.generalised import FUNCTIONS, Generalised, GeneralisedExponential
from subquad.inputs import no_autocast, require_inputs, zero_padding
from subquad.mechanism import Dims, Keys, Queries, Valid
from subquad.mechanisms.kernel import KERNEL, KernelAttention
from subquad.ops.shared.generators import seeded
from subquad.ops.shared.precision import wide

ESTIMATES: dict[str, Callable[[Projection], FeatureMap]] = {  # of the softmax kernel
    "positive": Favor,
    "hyperbolic": Hyperbolic,
    "trigonometric": Trigonometric,
}
OTHERS = ("exp", *FUNCTIONS)  # kernels of their own
FEATURES = 256
PAIRED = ("hyperbolic", "trigonometric")  # two features a row of W

MAPS = (*ESTIMATES, *OTHERS)

MapName = Annotated[str, one_of(*MAPS)]
Lengths = Annotated[str, one_of(*LENGTHS)]


class Performer(KernelAttention):
    """Random features of queries and keys, in one of several kinds.

    features: how many; even where two are made of a random direction.
    map: "positive" features of the softmax kernel; "hyperbolic", positive with less variance, and
        "trigonometric", without sign, both of them two to a direction; or the features f(W x') + `epsilon` of
        another kernel: relu, abs, elu, gelu, sigmoid or exp.
    orthogonal: whether directions are so within blocks of the head's width, which lowers the variance.
    lengths: of directions: "chi", those of Gaussian vectors; "fixed", all sqrt(d), which lowers the variance
        further at the price of a bias (SMREG).
    epsilon: added to each feature of another kernel, so that a query cannot see no key at all.
    projection: without it, the features of another kernel are f(x') + `epsilon`, as many as a head is wide.
    rescale: without it, x' is x there. Without both, "relu" is the Performer of the Long Range Arena.
    normalise: whether queries and keys are divided by their norms, and the softmax that is estimated is that
        of their cosines: a weight's relative variance is then below exp(4) / `features`, whatever is learnt.
    seed: from which directions are drawn, with the layer's number.
    redraw_every: steps of training until they are drawn anew, 0 for never; the training loop calls
        `subquad.nn.redraw`.

    Approximates softmax attention, and equals it as `features` grows, where `map` is positive, hyperbolic or
    trigonometric, `lengths` "chi" and `normalise` off. Good at small norms only: call `estimate_error` on
    your own queries and keys. Trigonometric features are the best where |x'| = |x| / d^(1/4) is at most about
    one, and useless beyond: their weights change sign, and so may the sum that they are divided by. The other
    maps are attention with kernels of their own.

    Not for sharp attention, in which single weights are near one: logits of 10 take queries and keys whose
    weights no affordable number of features can estimate. With `normalise` logits lie between -1 and 1.
    """

    traits = replace(
        KERNEL,
        name="performer",
        paper="arXiv:2009.14794",
        limit={"features": 16384},
        limit_tol=0.1,
        tiny={"features": 16},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        features: Count = FEATURES,
        map: MapName = "positive",
        orthogonal: bool = True,
        lengths: Lengths = "chi",
        epsilon: Positive = 1e-3,
        projection: bool = True,
        rescale: bool = True,
        normalise: bool = False,
        seed: int = 0,
        redraw_every: Steps = 0,
    ) -> None:
        if map in PAIRED and features % 2:
            raise ValueError(
                f"'performer': {map} features come in pairs: features must be even, not {features!r}"
            )
        if map in ESTIMATES and not (projection and rescale):
            raise ValueError(
                f"'performer': map={map!r} estimates softmax attention, which takes projection=True and "
                f"rescale=True; the others are {', '.join(OTHERS)}"
            )
        if normalise and not rescale:
            raise ValueError("'performer': normalise=True rescales by itself: leave rescale=True")
        drawn = {"features": features != FEATURES, "lengths": lengths != "chi", "orthogonal": not orthogonal}
        drawn |= {"seed": seed, "redraw_every": redraw_every}
        if not projection and (idle := [option for option, chosen in drawn.items() if chosen]):
            raise ValueError(
                "'performer': projection=False leaves nothing to draw, and has as many features as a head is "
                f"wide: leave {', '.join(idle)} at the default"
            )
        scaling: Scaling = "unit" if normalise else "root" if rescale else "none"
        project = Unprojected(scaling=scaling)
        if projection:
            project = Projection(
                dims.head_dim,
                rows=features // 2 if map in PAIRED else features,
                generator=seeded(seed, dims.layer),
                orthogonal=orthogonal,
                lengths=lengths,
                scaling=scaling,
            )
        super().__init__(dims, causal=causal, features=feature_map(map, project, epsilon=epsilon))
        self.map = map
        self.normalise = normalise
        self.redraw_every = redraw_every

    def score_inputs(self) -> tuple[str, ...]:
        return ("q",) if self.map in ESTIMATES and not self.normalise else ()

    @torch.no_grad()
    def estimate_error(
        self, q: Queries, k: Keys, *, valid: Valid | None = None, at_most: int = 256
    ) -> Float[Tensor, " h"]:
        """How far the weights are from softmax attention's, by head: `(b h t d), (b h s d) -> (h)`.

        The norm of their difference over the norm of softmax's weights: 0 is exact, and from about 1 on the
        estimate says no more about softmax than zeros would. Both are taken over `at_most` queries and
        `at_most` keys, evenly spaced, of which every query sees every real one, also where the mechanism is
        causal; so the cost does not grow with length. With `normalise` the softmax is that of the cosines.
        Raises `ValueError` for a `map` that estimates no softmax, and for inputs that do not fit.
        """
        if self.map not in ESTIMATES:
            raise ValueError(
                f"'performer': map={self.map!r} is a kernel of its own and estimates no softmax attention; "
                f"those that do are {', '.join(ESTIMATES)}"
            )
        widths = dict.fromkeys("qk", self.dims.head_dim)
        require_inputs(
            "performer", (q, k), {"valid": valid}, widths=widths, heads=self.dims.heads, cross=True
        )
        with no_autocast(q):
            q, k = wide(*zero_padding(valid, q, k))
            real = k.new_ones(k.shape[0], k.shape[2], dtype=torch.bool) if valid is None else valid
            counts = real if q.shape[2] == k.shape[2] else real.new_ones(q.shape[0], q.shape[2])
            rows, columns = (evenly(x.shape[2], at_most, device=x.device) for x in (q, k))
            q, k, real, counts = q[:, :, rows], k[:, :, columns], real[:, columns], counts[:, rows]
            one_hot = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
            estimated = self.average(q, k, one_hot, valid=real, causal=False)
            scaling: Scaling = "unit" if self.normalise else "root"
            logits = scaled(q, scaling) @ scaled(k, scaling).mT
            lowest = torch.finfo(logits.dtype).min  # finite, so that a row without keys is not nan
            exact = logits.masked_fill(~real[:, None, None, :], lowest).softmax(-1)
            exact, estimated = (
                x.masked_fill(~(counts[:, None, :, None] & real[:, None, None, :]), 0)
                for x in (exact, estimated)
            )
            return by_head(estimated - exact) / by_head(exact)


def feature_map(name: str, project: Projection | Unprojected, *, epsilon: float) -> FeatureMap:
    if isinstance(project, Projection) and name in ESTIMATES:
        return ESTIMATES[name](project)
    if name == "exp":
        return GeneralisedExponential(project, epsilon=epsilon)
    return Generalised(project, f=FUNCTIONS[name], epsilon=epsilon)


def by_head(x: Float[Tensor, "b h t s"]) -> Float[Tensor, " h"]:
    """The norm of each head's part."""
    return torch.linalg.vector_norm(x, dim=(0, 2, 3))


def evenly(count: int, at_most: int, *, device: torch.device) -> Int[Tensor, " n"]:
    """Indices below `count`, evenly spaced, all of them if there are no more than `at_most`."""
    return torch.linspace(0, count - 1, min(count, at_most), device=device).round().long()
