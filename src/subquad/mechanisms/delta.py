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

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.recurrent import RecurrentAttention, RecurrentState, initial
from subquad.ops.recurrence import delta_product
from subquad.ops.shared.precision import wide

EPSILON = 1e-6  # under the length of queries and keys, in the authors' code

Rates = Float[Tensor, "b h t 1"]


class DeltaInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    beta: Rates  # logits of how much is overwritten


class DeltaAttention(RecurrentAttention):
    """Linear attention that overwrites: a key recalls its last value.

    swish_values: whether values pass through silu, as in the authors' code, or are written as they come.

    An input beyond q, k and v, `beta`, of width 1, holds the logits of how much is overwritten.

    Approximates no softmax: it is an associative memory trained on the sequence as it reads it. Keys at right
    angles, written with beta = 1, recall exactly what they wrote; it is never equal to softmax attention.

    Not for sequences that change their subject: it forgets nothing but what it overwrites, and holds about as
    many things as a head is wide. Where the past should fade, use `gated-delta`.
    """

    inputs = DeltaInputs
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

    def _recur(self, x: DeltaInputs) -> Outputs:
        q, k = (y * y.sigmoid() for y in (x.q, x.k))
        q, k = (y / (y.norm(dim=-1, keepdim=True) ** 2 + EPSILON).sqrt() for y in (q, k))
        v = x.v * x.v.sigmoid() if self.swish_values else x.v
        I = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        S, out = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]), [v[:, :, :0]]
        for i in range(k.shape[2]):
            k_i, beta_i = k[:, :, i, :, None], x.beta[:, :, i, :, None].sigmoid()
            S = (I - beta_i * k_i @ k_i.mT) @ S + beta_i * k_i @ v[:, :, i, None]
            out.append(q[:, :, i, None] @ S)
        return self._normed(torch.cat(out, 2))

    def _advance(
        self, x: DeltaInputs, *, valid: Valid | None, state: RecurrentState | None, in_place: bool
    ) -> tuple[Outputs, RecurrentState]:
        S = initial(x.k, x.v) if state is None else state.S
        nothing_fades = S.new_zeros(1).expand(1, 1, x.k.shape[2], 1)
        fusion = self._fusion(S, qk_l2norm_eps=EPSILON, swish_values=self.swish_values)
        beta = wide(x.beta)[0].sigmoid()
        out, S = delta_product(x.q, x.k, x.v, beta, nothing_fades, state=S, fusion=fusion, in_place=in_place)
        return out, RecurrentState(S)
