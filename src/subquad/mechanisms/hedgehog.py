"""Hedgehog: linear attention whose learnt features are as spiky as softmax.

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)
    phi(x) = [exp(x W + b), exp(-(x W + b))]

Zhang, Bhatia, Kumbong, Re: The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry.
ICLR 2024, arXiv:2402.04347, section 4. Departs from the paper in that queries and keys share one map, that
nothing is distilled from a softmax teacher (the maps are trained with the network), and that exponentials are
kept in range by shifts which cancel, rather than by the softmax over features of the authors' code; that is
`normalise`, with their factor of two in W and b.
"""

from dataclasses import replace

from subquad.features.hedgehog import Hedgehog
from subquad.mechanism import Dims
from subquad.mechanisms.kernel import KERNEL, KernelAttention


class HedgehogAttention(KernelAttention):
    """With `normalise`, the features of a key sum to one, so that its norm does not weigh.

    Approximates softmax attention as far as its maps are trained to: like it, weights are positive, spiky,
    and grow with a key along its query. It is equal to it for no options.

    Not for a drop-in replacement without training: at the start, weights are sums of cosh(q_f + k_f) over the
    coordinates, and not exponentials of the dot product.
    """

    traits = replace(KERNEL, name="hedgehog", paper="arXiv:2402.04347")

    def __init__(self, dims: Dims, *, causal: bool, normalise: bool = False) -> None:
        features = Hedgehog(dims.heads, dims.head_dim, normalise=normalise)
        super().__init__(dims, causal=causal, features=features)
