"""Performer: softmax attention estimated without bias by positive random features (FAVOR+).

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)
    phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(f),    x' = x / d^(1/4)

As f grows the weights tend to softmax(q . k / sqrt(d)), with an error that falls as f^(-1/2) and grows
exponentially with the norms of queries and keys.

Choromanski et al.: Rethinking Attention with Performers. ICLR 2021, arXiv:2009.14794, section 2.
Departs from the authors' code in its stabiliser: no epsilon is added to the features, and the shift of keys
is a running maximum, so that causal outputs do not depend on the future even by rounding.
"""

from subquad.features.favor import Favor
from subquad.mechanism import Dims, Traits
from subquad.mechanisms.kernel import KernelAttention


class Performer(KernelAttention):
    """`features` random directions drawn from `seed`, `orthogonal` within blocks of the head's width."""

    traits = Traits(
        name="performer",
        paper="arXiv:2009.14794",
        family="kernel",
        bidirectional=True,
        causal="strict",
        cross=True,
        state="bounded",
        normalised=True,
        limit={"features": 16384},
        limit_tol=0.1,
        tiny={"features": 16},
    )

    def __init__(
        self, dims: Dims, *, causal: bool, features: int = 256, seed: int = 0, orthogonal: bool = True
    ) -> None:
        favor = Favor(dims.head_dim, features=features, seed=seed, orthogonal=orthogonal)
        super().__init__(dims, causal=causal, features=favor)
