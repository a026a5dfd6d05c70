"""Gated linear attention (GLA): the text decides, channel by channel, what fades.

    out_i = swish(gate_i) * norm(q_i^T S_i),    S_i = diag(alpha_i) S_(i-1) + k_i v_i^T
    alpha_i = sigmoid(forget_i)^(1/tau)

with tau = 16, so that gates drawn at random keep some 96 % a token, and q scaled by 1 / sqrt(d). The
bidirectional form, which the paper has not, reads S_i + S'_i - k_i v_i^T, where S' is made in the same way
from the other end of the sequence.

Yang, Wang, Shen, Panda, Kim: Gated Linear Attention Transformers with Hardware-Efficient Training. ICML 2024,
arXiv:2312.06635, section 4, whose 4.4 is the layer. The norm of a head and the swish gate belong to the
mechanism here. Departs from the paper:

- The logits of alpha are an input like another, of full rank. The paper makes them through a bottleneck of
  16 channels, which is the layer's matter.
- Keys are as wide as values, not half as wide.
- The norm is by root mean square, as in the authors' code, where the paper has a layer norm.
"""

import math
from typing import NamedTuple

from subquad.bounds import Positive
from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.recurrent import Recurrence, RecurrentAttention, RecurrentState, initial
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.shards import Shards


class GatedLinearInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    forget: Keys  # logits of the forget gates
    gate: Values  # of the output


class GatedLinearAttention(RecurrentAttention):
    """Linear attention with a forget gate for each channel of a key.

    tau: the root that is taken of the forget gate; the larger, the slower it forgets. The paper's is 16.

    Inputs beyond q, k and v: `forget`, the logits of the forget gates, and `gate`, that of the output.

    Approximates no softmax: weights may be negative and sum to nothing in particular. With all forget gates
    open it is linear attention without its denominator; it is never equal to softmax attention.

    Not for exact recall of many things: what is written is added to what is there, and a key that comes
    again recalls the sum of its values. Where the last one counts, use `gated-delta`.
    """

    inputs = GatedLinearInputs
    traits = Traits(
        name="gated-linear",
        paper="arXiv:2312.06635",
        family="recurrent",
        bidirectional=True,
        causal="strict",
        state="bounded",
        exchange="states",
    )

    def __init__(self, dims: Dims, *, causal: bool, tau: Positive = 16.0) -> None:
        super().__init__(dims, causal=causal)
        self.tau = tau

    def _recurrence(self, x: GatedLinearInputs) -> Recurrence:
        return Recurrence(x.q / x.q.shape[-1] ** 0.5, x.k, x.v, x.forget.sigmoid() ** (1 / self.tau))

    def _outputs(self, o: Values, x: GatedLinearInputs) -> Outputs:
        return x.gate * x.gate.sigmoid() * self._normed(o)

    def _advance(
        self,
        x: GatedLinearInputs,
        *,
        valid: Valid | None,
        state: RecurrentState | None,
        in_place: bool,
        shards: Shards | None = None,
    ) -> tuple[Outputs, RecurrentState]:
        q, k, v, forget, gate = x
        if valid is not None:
            forget = forget.masked_fill(~valid[:, None, :, None], math.inf)  # nothing fades at padding
        S = initial(k, v) if state is None else state.S
        fusion = self._fusion(S, gate, q_scale=q.shape[-1] ** -0.5, gate_normalizer=self.tau)
        tokens = RecurrenceInputs(q, k, v, forget)
        out, S = self._product(tokens, state=S, fusion=fusion, in_place=in_place, shards=shards)
        return out, RecurrentState(S)
