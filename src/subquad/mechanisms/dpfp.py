"""DPFP: linear attention whose features are products of rectified coordinates, with nothing random or learnt.

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)
    phi(x) = [r_i r_(i+j)  for j = 1 .. nu, i = 1 .. 2 d],    r = [relu(x), relu(-x)]

Schlag, Irie, Schmidhuber: Linear Transformers Are Secretly Fast Weight Programmers. ICML 2021,
arXiv:2102.11174, section 5.3. This is the paper's linear attention, whose memory adds; its delta rule, which
overwrites, and the normalisation of features by their sum that goes with it, are another mechanism.
"""

from dataclasses import replace

from subquad.features.dpfp import Dpfp
from subquad.mechanism import Dims
from subquad.mechanisms.kernel import KERNEL, KernelAttention


class DpfpAttention(KernelAttention):
    """Products of rectified coordinates; 2 nu times as many features as a head is wide.

    nu: shifts, from 1 to one less than twice the head's width; the paper has 1 to 3.

    Approximates nothing: it makes room for more keys that do not disturb each other than a head is wide. It
    is equal to softmax attention for no options.

    Not for narrow heads: weights are zero where two products of neighbours are never above zero at once, and
    a query whose weights are all zero gives zeros.
    """

    traits = replace(KERNEL, name="dpfp", paper="arXiv:2102.11174", normalised=False, tiny={"nu": 3})

    def __init__(self, dims: Dims, *, causal: bool, nu: int = 1) -> None:
        super().__init__(dims, causal=causal, features=Dpfp(dims.head_dim, nu=nu))
