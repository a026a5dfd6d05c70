"""Hedgehog: linear attention whose learnt features are as spiky as softmax.

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)
    phi(x) = [exp(x W + b), exp(-(x W + b))]

Zhang, Bhatia, Kumbong, Re: The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry.
ICLR 2024, arXiv:2402.04347, section 4. Departs from the paper in that queries and keys share one map, that
nothing is distilled from a softmax teacher (the maps are trained with the network), and that exponentials are
kept in range by shifts which cancel, rather than by a softmax over features. The authors' code has two of
these: over all features, which is `normalise`, with their factor of two in W and b; and in LoLCATs
(arXiv:2410.10254) over each half, which is `halves`.
"""

from dataclasses import replace

from subquad.features.hedgehog import Hedgehog
from subquad.mechanism import Dims
from subquad.mechanisms.kernel import KERNEL, KernelAttention


class HedgehogAttention(KernelAttention):
    """Learnt exponentials of queries and keys, two for each coordinate.

    normalise: whether the features of a key sum to one, so that its norm does not weigh.
    halves: whether those of either sign do, of queries as of keys, as in LoLCATs; not beside `normalise`.

    Approximates softmax attention as far as its maps are trained to: like it, weights are positive, spiky,
    and grow with a key along its query. It is equal to it for no options.

    Not for a drop-in replacement without training: at the start, weights are sums of cosh(q_f + k_f) over the
    coordinates, and not exponentials of the dot product.
    """

    traits = replace(KERNEL, name="hedgehog", paper="arXiv:2402.04347")

    def __init__(self, dims: Dims, *, causal: bool, normalise: bool = False, halves: bool = False) -> None:
        if normalise and halves:
            raise ValueError("'hedgehog': normalise=True and halves=True exclude each other; choose one")
        features = Hedgehog(dims.heads, dims.head_dim, normalise=normalise, halves=halves)
        super().__init__(dims, causal=causal, features=features)
