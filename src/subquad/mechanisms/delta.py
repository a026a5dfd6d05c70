"""DeltaNet: linear attention that replaces what a key recalls, instead of adding to it.

    out_i = norm(q_i^T S_i),    S_i = (I - beta_i k_i k_i^T) S_(i-1) + beta_i k_i v_i^T

with q and k of length 1 after silu, v after silu, and beta = sigmoid of an input. S_(i-1)^T k_i is what the
key recalls; a share beta of it is taken out and as much of the new value put in: one step of gradient descent
on |S^T k_i - v_i|^2 / 2, with beta for its rate. The fast form is in `ops/recurrence/delta_rule.py`. The
bidirectional form, which the papers have not, reads S_i + S'_i - beta_i k_i v_i^T, where S' is made in the
same way from the other end of the sequence.

Schlag, Irie, Schmidhuber: Linear Transformers Are Secretly Fast Weight Programmers. ICML 2021,
arXiv:2102.11174, section 4.2. In the form of Yang, Wang, Zhang, Shen, Kim: Parallelizing Linear Transformers
with the Delta Rule over Sequence Length. NeurIPS 2024, arXiv:2406.06484, sections 2.2 and 3. The norm of a
head belongs to the mechanism here; the silu of v is that of the authors' code (flash-linear-attention).
Departs from the second paper: there is no short convolution before q, k and v, which is the layer's matter.
"""

from typing import NamedTuple

import torch

from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.recurrent import Rates, Recurrence, RecurrentAttention, RecurrentState, initial
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.ops.shared.precision import wide
from subquad.shards import Shards

EPSILON = 1e-6  # under the length of queries and keys, in the authors' code


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
        bidirectional=True,
        causal="strict",
        state="bounded",
        exchange="states",
    )

    def __init__(self, dims: Dims, *, causal: bool, swish_values: bool = True) -> None:
        super().__init__(dims, causal=causal)
        self.swish_values = swish_values

    def _recurrence(self, x: DeltaInputs) -> Recurrence:
        q, k = (y * y.sigmoid() for y in (x.q, x.k))
        q, k = (y / (y.norm(dim=-1, keepdim=True) ** 2 + EPSILON).sqrt() for y in (q, k))
        v = x.v * x.v.sigmoid() if self.swish_values else x.v
        return Recurrence(q, k, v, torch.ones_like(x.beta), x.beta.sigmoid())

    def _outputs(self, o: Values, x: DeltaInputs) -> Outputs:
        return self._normed(o)

    def _advance(
        self,
        x: DeltaInputs,
        *,
        valid: Valid | None,
        state: RecurrentState | None,
        in_place: bool,
        shards: Shards | None = None,
    ) -> tuple[Outputs, RecurrentState]:
        S = initial(x.k, x.v) if state is None else state.S
        nothing_fades = S.new_zeros(1).expand(1, 1, x.k.shape[2], 1)
        fusion = self._fusion(S, qk_l2norm_eps=EPSILON, swish_values=self.swish_values)
        beta = wide(x.beta)[0].sigmoid()
        tokens = RecurrenceInputs(x.q, x.k, x.v, nothing_fades, beta)
        out, S = self._product(tokens, state=S, fusion=fusion, in_place=in_place, shards=shards)
        return out, RecurrentState(S)
