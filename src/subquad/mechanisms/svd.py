"""Softmax attention truncated to its leading singular values: the best that any attention of low rank can do.

    out = A_r V,    A_r = sum_{i <= r} s_i u_i v_i^T,    A = softmax(Q K^T / sqrt(d)) = sum_i s_i u_i v_i^T

No matrix of rank r is nearer to A, so A_r bounds from above what Linformer, Nystromformer and their relatives
can reach with as many slots or landmarks: an oracle for studies, more expensive than what it truncates.

Wang, Li, Khabsa, Fang, Ma: Linformer: Self-Attention with Linear Complexity. 2020, arXiv:2006.04768,
section 3 and its equation 6. How it is computed here, and where it departs:

- A_r = A P, where P projects onto the r leading right singular vectors. These are the leading eigenvectors
  of A^T A, taken in float64, for squaring A halves the digits.
- P is held constant in the gradient, which is then that of A and V alone, (dA) P V + A P (dV). The rotation
  of singular vectors has no finite derivative where singular values coincide.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.bounds import Count
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.shared.masked_softmax import masked_softmax
from subquad.ops.shared.precision import wide
from subquad.ops.shared.transforms import once

NO_SECOND = (
    "'svd' holds its singular vectors constant in the gradient, so that there is no second derivative: take "
    "first ones, without create_graph=True, or a rank of the sequence's length"
)

Weights = Float[Tensor, "b h t t"]


class SvdAttention(Mechanism):
    """Softmax attention with all but its `rank` greatest singular values set to zero.

    rank: r, for each head and row by itself. The paper's Figure 1 looks at the 128th singular value.

    Approximates softmax attention as well as any matrix of rank r can. It equals softmax attention where
    `rank` is at least the number of tokens.

    Not for saving anything: it forms all weights, and decomposes them in O(n^3). Not for causal models, for a
    truncated triangular matrix is no longer triangular.
    """

    traits = Traits(
        name="svd",
        paper="arXiv:2006.04768",
        family="low rank",
        bidirectional=True,
        cost=3.0,
        limit={"rank": 24},
        tiny={"rank": 6},
    )

    def __init__(self, dims: Dims, *, causal: bool, rank: Count = 128) -> None:
        super().__init__(dims, causal=causal)
        self.rank = rank

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        """Row by row without padding; `A - A.detach()`, which is zero, carries the gradient."""
        out, r = torch.zeros_like(v), self.rank
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            Q, K, V = (x[row][:, real] for x in (q, k, v))
            A = (Q @ K.mT / Q.shape[-1] ** 0.5).softmax(-1)
            left, values, right = torch.linalg.svd(A.detach(), full_matrices=False)
            left, values, right = left[..., :r], values[..., None, :r], right[..., :r, :]
            truncated = (left * values) @ right + (A - A.detach()) @ right.mT @ right
            out[row, :, real] = truncated @ V
        return out

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        q, k, v = wide(q, k, v)
        A = self._weights(q, k, valid=valid)
        if torch.compiler.is_compiling() or self.rank < A.shape[-1]:
            A, v = once(A, NO_SECOND), once(v, NO_SECOND)
            v = self._truncate(A.detach(), v, valid=valid)
        return A @ v

    def _weights(self, q: Queries, k: Keys, *, valid: Valid | None) -> Weights:
        """A of real tokens; rows and columns of zeros at padding, which leave its singular values alone."""
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if valid is None:
            return scores.softmax(-1)
        return masked_softmax(scores, seen=(valid[:, :, None] & valid[:, None, :])[:, None])

    def _truncate(self, A: Weights, v: Values, *, valid: Valid | None) -> Values:
        """P v, or v itself in rows of no more than r tokens, whose weights nothing is cut from."""
        A = A.double()
        _, vectors = torch.linalg.eigh(A.mT @ A)  # the greatest eigenvalues come last
        if torch.compiler.is_compiling():  # for any length, be there fewer vectors
            mask = torch.arange(A.shape[-1], device=A.device) >= A.shape[-1] - self.rank
            leading = (vectors * mask).to(v.dtype)
        else:
            leading = vectors[..., -self.rank :].to(v.dtype)
        projected = leading @ (leading.mT @ v)
        if valid is None:
            return projected
        return torch.where((valid.sum(1) <= self.rank)[:, None, None, None], v, projected)
