"""Nystromformer: softmax attention reconstructed from its entries at a few landmarks, by the Nystrom method.

    out = F Z B V + convolution(V)
    F = softmax(Q K~^T / sqrt(d)),  A = softmax(Q~ K~^T / sqrt(d)),  B = softmax(Q~ K^T / sqrt(d))

The landmarks Q~ and K~ are the means of m contiguous segments of the queries and keys, and Z is the
pseudo-inverse of the m x m matrix A, approached by `iterations` of

    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4,    Z_0 = A^T / (|A|_1 |A|_inf)

Read from the right, nothing larger than n x m is ever formed: O(n m d + m^3).

Xiong, Zeng, Chakraborty, Tan, Fung, Li, Singh: Nystromformer: A Nystrom-Based Algorithm for Approximating
Self-Attention. AAAI 2021, arXiv:2102.03902, sections 3.2 to 3.4. How it is laid out here, and where it
departs:

- The norms in Z_0 are each matrix's own; the authors' code takes the largest of the batch, and so lets an
  example depend on its neighbours.
- Segments are those of a row's real tokens, whatever their number: lengths need not be multiples of m. A
  row of at most m tokens has a landmark for each.
- The convolution, over each head's values, sees the row's real tokens side by side.
- There is no causal form: every landmark but the first is a mean that knows later tokens.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from subquad.bounds import Bound, Count
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.attention import attention
from subquad.ops.convolution import convolve
from subquad.ops.shared.landmarks import Segments
from subquad.ops.shared.masked_softmax import masked_softmax
from subquad.ops.shared.packing import Packing
from subquad.ops.shared.precision import by_heads, wide
from subquad.ops.shared.unused import unused

Kernel = Annotated[int, Bound("odd, or 0 for none", lambda n: n == 0 or (n > 0 and n % 2 == 1))]
RowValues = Float[Tensor, "h n e"]
Square = Float[Tensor, "b h m m"]


class Nystromformer(Mechanism):
    """Softmax attention by way of `landmarks`, and a convolution of the values beside it.

    landmarks: m, means of as many segments.
    iterations: of the pseudo-inverse; six suffice for landmarks that differ little from each other, more are
        needed the nearer A is to a singular matrix.
    kernel: tokens that the depthwise convolution spans, one kernel a head; odd, or 0 for no convolution.

    Approximates softmax attention, well where its matrix has rank m and the landmarks span it. It equals
    softmax attention where there are as many landmarks as tokens, the iterations have converged and there is
    no convolution.

    Not for causal models or cross-attention. Not for tokens whose order in time says nothing, for segments
    then average unlike tokens and the landmarks come to resemble one another.
    """

    traits = Traits(
        name="nystromformer",
        paper="arXiv:2102.03902",
        family="low rank",
        bidirectional=True,
        limit={"landmarks": 24, "iterations": 30, "kernel": 0},
        tiny={"landmarks": 7, "kernel": 5},
    )

    def __init__(
        self, dims: Dims, *, causal: bool, landmarks: Count = 64, iterations: Count = 6, kernel: Kernel = 33
    ) -> None:
        super().__init__(dims, causal=causal)
        self.landmarks, self.iterations, self.kernel = landmarks, iterations, kernel
        if kernel:
            bound = kernel**-0.5  # torch's for a convolution
            self.skip = nn.Parameter(torch.empty(dims.heads, kernel).uniform_(-bound, bound))

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            tokens = [x[row][:, real] for x in (q, k, v)]
            if tokens[0].shape[1]:
                out[row, :, real] = self._define(*tokens)
        return out

    def _define(self, q: Float[Tensor, "h n d"], k: Float[Tensor, "h n d"], v: RowValues) -> RowValues:
        """One row without padding."""
        n, d = q.shape[1:]
        m = min(self.landmarks, n)
        segments = [[t for t in range(n) if t * m // n == j] for j in range(m)]
        q_landmarks, k_landmarks = (torch.stack([x[:, s].mean(1) for s in segments], 1) for x in (q, k))
        F = (q @ k_landmarks.mT / d**0.5).softmax(-1)
        A = (q_landmarks @ k_landmarks.mT / d**0.5).softmax(-1)
        B = (q_landmarks @ k.mT / d**0.5).softmax(-1)
        norms = torch.linalg.matrix_norm(A, ord=1) * torch.linalg.matrix_norm(A, ord=torch.inf)
        Z, I = A.mT / norms[:, None, None], torch.eye(m).to(A)
        for _ in range(self.iterations):
            Z = Z @ (13 * I - A @ Z @ (15 * I - A @ Z @ (7 * I - A @ Z))) / 4
        out = F @ Z @ B @ v
        if self.kernel:
            around = functional.pad(v, (0, 0, self.kernel // 2, self.kernel // 2))
            for offset in range(self.kernel):
                out = out + self.skip[:, offset, None, None] * around[:, offset : offset + n]
        return out

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        if q.shape[2] == 0:
            return v + unused(q, k, *self.parameters()).to(v.dtype)
        if torch.compiler.is_compiling() and valid is None:  # there may be fewer tokens than landmarks
            valid = torch.ones_like(k[:, 0, :, 0], dtype=torch.bool)
        packing = Packing.of(valid, like=k)

        def attend(own: slice, q: Queries, k: Keys, v: Values) -> Outputs:
            return packing.unpack(
                self._attend(packing.pack(q), packing.pack(k), packing.pack(v), own, packing)
            )

        return by_heads(attend, q, k, v)

    def _attend(self, q: Queries, k: Keys, v: Values, own: slice, packing: Packing) -> Outputs:
        """What packed tokens of the heads `own` get, from the right: B V, then Z (B V), then F (Z B V)."""
        length = q.shape[2]
        m = self.landmarks if torch.compiler.is_compiling() else min(self.landmarks, length)
        full = packing.valid is None
        segments = Segments.cut(packing.count, landmarks=m, length=length, full=full)
        q_landmarks, k_landmarks = segments.means(q), segments.means(k)
        wide_q, wide_k = wide(q_landmarks, k_landmarks)
        scores = wide_q @ wide_k.mT / q.shape[-1] ** 0.5
        if packing.valid is None or segments.real is None:
            seen = real = None
            A = scores.softmax(-1)
        else:
            seen, real = packing.valid[:, None, None, :], segments.real[:, None, None, :]
            A = masked_softmax(scores, seen=real & real.mT)
        (BV,) = wide(attention(q_landmarks, k, v, seen=seen))
        ZBV = pseudo_inverse(A, iterations=self.iterations) @ BV
        out = attention(q, k_landmarks, ZBV.to(v.dtype), seen=real)
        return convolve(v, self.skip[own].to(v.dtype)).add_(out) if self.kernel else out


def pseudo_inverse(A: Square, *, iterations: int) -> Square:
    """Section 3.3: each matrix by itself. Rows and columns of zeros stay so."""
    norms = A.sum(-2).amax(-1) * A.sum(-1).amax(-1)  # its entries are weights: none is negative
    Z = A.mT / norms.clamp(min=0.5)[..., None, None]  # a matrix with a row of weights has norms from 1 up
    flat_A, Z = A.flatten(0, 1), Z.flatten(0, 1)
    for _ in range(iterations):
        AZ = flat_A @ Z
        inner = torch.baddbmm(AZ, AZ, AZ, beta=7, alpha=-1)  # AZ (7 I - AZ)
        inner = torch.baddbmm(AZ, AZ, inner, beta=15, alpha=-1)  # AZ (15 I - AZ (7 I - AZ))
        Z = torch.baddbmm(Z, Z, inner, beta=13 / 4, alpha=-1 / 4)
    return Z.view_as(A)
