"""FAVOR++: softmax attention estimated without bias by the positive random features of least variance.

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)
    phi(x) = D exp(A |w|^2 + B w . x' - |x'|^2 / 2) / sqrt(f),    x' = x / d^(1/4)

Every A below 1/8 is without bias (`features/optimal.py` says with which B and D), and the best one has a
closed form in |q' + k'|^2. The paper puts the average over the pairs of the sequence at hand in its place.
That would let a weight depend on tokens to come, and on padding and the rest of the batch if it is averaged
over them; here it is fixed beforehand: an option, which `adapt` sets from data once.

Likhosherstov et al.: Chefs' Random Tables: Non-Trigonometric Random Features. NeurIPS 2022, arXiv:2205.15317,
section 3. Departs from it in that, and as Performer does in its stabiliser.
"""

from dataclasses import replace

import torch

from subquad.bounds import Count, PositiveOrZero, Steps
from subquad.features.directions import Projection
from subquad.features.optimal import OptimalFavor
from subquad.mechanism import Dims, Keys, Queries
from subquad.mechanisms.kernel import KERNEL, KernelAttention
from subquad.ops.shared.generators import seeded
from subquad.ops.shared.precision import wide


class FavorPlusPlus(KernelAttention):
    """The positive random features of least variance, for inputs of a known spread.

    features: random directions, a feature each.
    seed: from which they are drawn, with the layer's number.
    orthogonal: whether they are so within blocks of the head's width.
    spread: the expected square of a coordinate of q + k, 2 for independent normal inputs; at 0 the features
        are FAVOR+'s.
    redraw_every: steps of training until directions are drawn anew, 0 for never; the training loop calls
        `subquad.nn.redraw`.

    Approximates softmax attention whatever the spread, and equals it as `features` grows, with an error that
    falls as features^(-1/2). Where the spread is right, no positive features of this form err less.

    Not for queries and keys of large norm: at a given spread the error still grows exponentially with the
    square of |q + k|, if more slowly than FAVOR+'s. Nor for short sequences, where exact attention costs less
    than the features.
    """

    traits = replace(
        KERNEL,
        name="favor-plus-plus",
        paper="arXiv:2205.15317",
        limit={"features": 16384},
        limit_tol=0.1,
        tiny={"features": 16},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        features: Count = 256,
        seed: int = 0,
        orthogonal: bool = True,
        spread: PositiveOrZero = 2.0,
        redraw_every: Steps = 0,
    ) -> None:
        generator = seeded(seed, dims.layer)
        project = Projection(dims.head_dim, rows=features, orthogonal=orthogonal, generator=generator)
        optimal = OptimalFavor(dims.heads, project=project, spread=spread)
        super().__init__(dims, causal=causal, features=optimal)
        self.redraw_every = redraw_every

    @torch.no_grad()
    def adapt(self, q: Queries, k: Keys) -> None:
        """Set the spread of each head to what it is on average in a sample of inputs without padding.

        Outputs change, though not what they estimate. The spread is saved with the weights.
        """
        if not (q.shape[0] and q.shape[2] and k.shape[2]):
            raise ValueError("'favor-plus-plus' cannot adapt to a sample without tokens")
        assert isinstance(self.features, OptimalFavor)
        q, k = wide(q, k)
        # the mean over all pairs of |q + k|^2, without forming the pairs
        squares = q.square().sum(-1).mean(-1) + k.square().sum(-1).mean(-1)
        spread = (squares + 2 * (q.mean(2) * k.mean(2)).sum(-1)) / q.shape[-1]
        self.features.spread.copy_(spread.mean(0)[:, None, None])
