"""DeltaNet: linear attention that replaces what a key recalls, instead of adding to it.

    out_i = norm(q_i^T S_i),    S_i = (I - beta_i k_i k_i^T) S_(i-1) + beta_i k_i v_i^T

with q and k of length 1 after silu, v after silu, and beta = sigmoid of an input. S_(i-1)^T k_i is what the
key recalls; a share beta of it is taken out and as much of the new value put in: one step of gradient descent
on |S^T k_i - v_i|^2 / 2, with beta for its rate. The fast form is in `ops/recurrence/delta_rule.py`.

Schlag, Irie, Schmidhuber: Linear Transformers Are Secretly Fast Weight Programmers. ICML 2021,
arXiv:2102.11174, section 4.2. In the form of Yang, Wang, Zhang, Shen, Kim: Parallelizing Linear Transformers
with the Delta Rule over Sequence Length. NeurIPS 2024, arXiv:2406.06484, sections 2.2 and 3. The norm of a
head belongs to the mechanism here; the silu of v is that of the authors' code (flash-linear-attention).
Departs from the second paper: there is no short convolution before q, k and v, which is the layer's matter.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.inputs import zero_padding
from subquad.mechanism import Dims, Outputs, Queries, Traits, Valid
from subquad.mechanisms.recurrent import Memory, RecurrentAttention, Row, nothing
from subquad.ops.precision import wide
from subquad.ops.recurrence import delta_product

EPSILON = 1e-6  # under the length of queries and keys, in the authors' code

Rates = Float[Tensor, "b h t 1"]


class DeltaAttention(RecurrentAttention):
    """Linear attention that overwrites: a key recalls its last value.

    `swish_values`: values pass through silu; otherwise they are written as they come.
    `beta`, an input of width 1 beyond q, k and v, holds the logits of how much is overwritten.

    Approximates no softmax: it is an associative memory trained on the sequence as it reads it. Keys at right
    angles, written with beta = 1, recall exactly what they wrote; it is never equal to softmax attention.

    Not for sequences that change their subject: it forgets nothing but what it overwrites, and holds about as
    many things as a head is wide. Where the past should fade, use `gated-delta`.
    """

    traits = Traits(
        name="delta",
        paper="arXiv:2406.06484",
        family="recurrent",
        causal="strict",
        state="bounded",
    )

    def __init__(self, dims: Dims, *, causal: bool, swish_values: bool = True) -> None:
        super().__init__(dims, causal=causal)
        self.swish_values = swish_values

    def projections(self) -> dict[str, int]:
        return {**super().projections(), "beta": 1}

    def definition(
        self, q: Queries, k: Queries, v: Queries, beta: Rates, *, valid: Valid | None = None
    ) -> Outputs:
        return self._define(q, k, v, beta, valid=valid)

    def forward(
        self, q: Queries, k: Queries, v: Queries, beta: Rates, *, valid: Valid | None = None
    ) -> Outputs:
        return self._run(q, k, v, beta, valid=valid, state=None)[0]

    def step(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        beta: Rates,
        *,
        valid: Valid | None = None,
        state: Memory | None = None,
    ) -> tuple[Outputs, Memory]:
        return self._run(q, k, v, beta, valid=valid, state=state)

    def _recur(self, q: Row, k: Row, v: Row, beta: Row) -> Row:
        I = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        v = v * v.sigmoid() if self.swish_values else v
        S, out = k.new_zeros(len(k), k.shape[-1], v.shape[-1]), [v[:, :0]]
        for i in range(k.shape[1]):
            q_i, k_i = (x[:, i] * x[:, i].sigmoid() for x in (q, k))
            q_i, k_i = (
                (x / (x.norm(dim=-1, keepdim=True) ** 2 + EPSILON).sqrt())[..., None] for x in (q_i, k_i)
            )
            beta_i = beta[:, i, :, None].sigmoid()
            S = (I - beta_i * k_i @ k_i.mT) @ S + beta_i * k_i @ v[:, i, None]
            out.append(q_i.mT @ S)
        o = torch.cat(out, 1)
        return self._normed(o)

    def _advance(
        self, q: Queries, k: Queries, v: Queries, beta: Rates, *, valid: Valid | None, state: Memory | None
    ) -> tuple[Outputs, Memory]:
        q, k, v, beta = zero_padding(valid, q, k, v, beta)
        S = nothing(k, v) if state is None else state.S
        nothing_fades = S.new_zeros(1).expand(1, 1, k.shape[2], 1)
        fusion = self._fusion(S, qk_l2norm_eps=EPSILON, swish_values=self.swish_values)
        out, S = delta_product(q, k, v, wide(beta)[0].sigmoid(), nothing_fades, state=S, fusion=fusion)
        return out, Memory(S)
