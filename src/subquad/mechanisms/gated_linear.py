"""Gated linear attention (GLA): the text decides, channel by channel, what fades.

    out_i = swish(gate_i) * norm(q_i^T S_i),    S_i = diag(alpha_i) S_(i-1) + k_i v_i^T
    alpha_i = sigmoid(forget_i)^(1/tau)

with tau = 16, so that gates drawn at random keep some 96 % a token, and q scaled by 1 / sqrt(d).

Yang, Wang, Shen, Panda, Kim: Gated Linear Attention Transformers with Hardware-Efficient Training. ICML 2024,
arXiv:2312.06635, section 4, whose 4.4 is the layer. The norm of a head and the swish gate belong to the
mechanism here. Departs from the paper:

- The logits of alpha are an input like another, of full rank. The paper makes them through a bottleneck of
  16 channels, which is the layer's matter.
- Keys are as wide as values, not half as wide.
- The norm is by root mean square, as in the authors' code, where the paper has a layer norm.
"""

import math

import torch

from subquad.inputs import zero_padding
from subquad.mechanism import Dims, Outputs, Queries, Traits, Valid
from subquad.mechanisms.recurrent import Memory, RecurrentAttention, Row, nothing
from subquad.ops.recurrence import decayed_product


class GatedLinearAttention(RecurrentAttention):
    """Linear attention with a forget gate for each channel of a key.

    `tau`: the root that is taken of the forget gate; the larger, the slower it forgets. Inputs beyond q, k
    and v: `forget`, the logits of the forget gates, and `gate`, that of the output.

    Approximates no softmax: weights may be negative and sum to nothing in particular. With all forget gates
    open it is linear attention without its denominator; it is never equal to softmax attention.

    Not for exact recall of many things: what is written is added to what is there, and a key that comes
    again recalls the sum of its values. Where the last one counts, use `gated-delta`.
    """

    traits = Traits(
        name="gated-linear",
        paper="arXiv:2312.06635",
        family="recurrent",
        causal="strict",
        state="bounded",
    )

    def __init__(self, dims: Dims, *, causal: bool, tau: float = 16.0) -> None:
        super().__init__(dims, causal=causal)
        if not 0 < tau < math.inf:
            raise ValueError(f"'gated-linear': tau must be a positive number, not {tau!r}")
        self.tau = tau

    def projections(self) -> dict[str, int]:
        return dict.fromkeys(("q", "k", "v", "forget", "gate"), self.dims.head_dim)

    def definition(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        forget: Queries,
        gate: Queries,
        *,
        valid: Valid | None = None,
    ) -> Outputs:
        return self._define(q, k, v, forget, gate, valid=valid)

    def forward(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        forget: Queries,
        gate: Queries,
        *,
        valid: Valid | None = None,
    ) -> Outputs:
        return self._run(q, k, v, forget, gate, valid=valid, state=None)[0]

    def step(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        forget: Queries,
        gate: Queries,
        *,
        valid: Valid | None = None,
        state: Memory | None = None,
    ) -> tuple[Outputs, Memory]:
        return self._run(q, k, v, forget, gate, valid=valid, state=state)

    def _recur(self, q: Row, k: Row, v: Row, forget: Row, gate: Row) -> Row:
        alpha = forget.sigmoid() ** (1 / self.tau)
        S, out = q.new_zeros(len(q), q.shape[-1], v.shape[-1]), [v[:, :0]]
        for i in range(q.shape[1]):
            S = alpha[:, i, :, None] * S + k[:, i, :, None] * v[:, i, None]
            out.append(q[:, i, None] @ S / q.shape[-1] ** 0.5)
        o = torch.cat(out, 1)
        return gate * gate.sigmoid() * self._normed(o)

    def _advance(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        forget: Queries,
        gate: Queries,
        *,
        valid: Valid | None,
        state: Memory | None,
    ) -> tuple[Outputs, Memory]:
        q, k, v, forget, gate = zero_padding(valid, q, k, v, forget, gate)
        if valid is not None:
            forget = forget.masked_fill(~valid[:, None, :, None], math.inf)  # nothing fades at padding
        S = nothing(k, v) if state is None else state.S
        fusion = self._fusion(S, gate, q_scale=q.shape[-1] ** -0.5, gate_normalizer=self.tau)
        out, S = decayed_product(q, k, v, forget, state=S, fusion=fusion)
        return out, Memory(S)
