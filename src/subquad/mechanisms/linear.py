"""Linear attention: phi(x) = elu(x) + 1, no softmax and no scale.

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)

Katharopoulos, Vyas, Pappas, Fleuret: Transformers are RNNs. ICML 2020, arXiv:2006.16236, section 3.
Departs from the authors' code in its denominator: nothing is added to it, and a query that sees no key
gives zero.
"""

from subquad.features.elu import Elu
from subquad.mechanism import Dims, Traits
from subquad.mechanisms.kernel import KernelAttention


class LinearAttention(KernelAttention):
    """Weights are dot products of elu(x) + 1: cheap, smooth, unable to be sharp."""

    traits = Traits(
        name="linear",
        paper="arXiv:2006.16236",
        family="kernel",
        bidirectional=True,
        causal="strict",
        cross=True,
        state="bounded",
        normalised=True,
    )

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        super().__init__(dims, causal=causal, features=Elu())
