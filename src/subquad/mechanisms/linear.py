"""Linear attention: phi(x) = elu(x) + 1, no softmax and no scale.

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)

Katharopoulos, Vyas, Pappas, Fleuret: Transformers are RNNs. ICML 2020, arXiv:2006.16236, section 3.
Departs from the authors' code in its denominator: nothing is added to it, and a query that sees no key
gives zero.
"""

from dataclasses import replace

from subquad.features.elu import Elu
from subquad.mechanism import Dims
from subquad.mechanisms.kernel import KERNEL, KernelAttention


class LinearAttention(KernelAttention):
    """Weights are dot products of elu(x) + 1: cheap, smooth, unable to be sharp. It has no options.

    Approximates no other attention: it is a kernel of its own, and never equals softmax attention.

    Not for tasks that look up one token among many: weights fall no faster than linearly with a dot product,
    so that every query also reads much of everything else.
    """

    traits = replace(KERNEL, name="linear", paper="arXiv:2006.16236")

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        super().__init__(dims, causal=causal, features=Elu())
