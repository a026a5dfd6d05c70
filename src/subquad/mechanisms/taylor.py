"""Based's linear attention: the exponential of softmax by its Taylor series, up to the square.

    out_i = sum_j a_ij v_j / sum_j a_ij,    a_ij = 1 + s_ij + s_ij^2 / 2,    s_ij = q_i . k_j / sqrt(r)

The polynomial is a dot product of (r + 1)(r + 2) / 2 features (`features/taylor.py`), and never below 1/2.
What makes so many affordable is that queries and keys are projected to few numbers, r = 16.

Arora et al.: Simple linear attention language models balance the recall-throughput tradeoff. ICML 2024,
arXiv:2402.18668, section 4.1; the series is also that of Keles, Wijewardena, Hegde: On the Computational
Complexity of Self-Attention, ALT 2023, arXiv:2209.04881. Based's layers of exact attention in a small window
are layers of their own, and not part of this one.
"""

from dataclasses import replace

from subquad.bounds import Count
from subquad.features.taylor import Taylor
from subquad.mechanism import Dims
from subquad.mechanisms.kernel import KERNEL, KernelAttention


class TaylorAttention(KernelAttention):
    """Scores as polynomials, of queries and keys that are projected to few numbers.

    width: r, numbers for each query and key, in each head; 16 in the paper.

    Approximates softmax attention where scores are small: the error of a weight is of third order in its
    score s. It is equal to it for no options: large scores, of either sign, weigh as their squares.

    Not for sharp attention: weights grow as the square of a score and not as its exponential, and a very
    negative score weighs as much as a very positive one. Nor for great widths, with which work and state
    grow as the square.
    """

    traits = replace(KERNEL, name="taylor", paper="arXiv:2402.18668", tiny={"width": 4})

    def __init__(self, dims: Dims, *, causal: bool, width: Count = 16) -> None:
        super().__init__(dims, causal=causal, features=Taylor(width))
        self.width = width

    def projections(self) -> dict[str, int]:
        return {"q": self.width, "k": self.width, "v": self.dims.head_dim}

    def score_inputs(self) -> tuple[str, ...]:
        return ("q",)
