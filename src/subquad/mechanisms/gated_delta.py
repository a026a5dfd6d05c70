"""Gated DeltaNet: the delta rule on a memory that fades when the text says so.

    out_i = swish(gate_i) * norm(q_i^T S_i)
    S_i = alpha_i (I - beta_i k_i k_i^T) S_(i-1) + beta_i k_i v_i^T
    alpha_i = exp(-A softplus(alpha'_i + b)),    beta_i = sigmoid(beta'_i)

with q and k of length 1 after silu, v after silu, and inputs alpha' and beta' of width 1. A > 0 and b are
learnt, a pair for each head, and drawn as in Mamba-2: A evenly between 1 and 16, and b such that softplus(b)
lies between 0.001 and 0.1, evenly in its logarithm. At alpha = 1 it is the delta rule, at beta = 0 the past
only fades, and at alpha = 0 it is forgotten at once, which the delta rule cannot do.

Yang, Kautz, Hatamizadeh: Gated Delta Networks: Improving Mamba2 with Delta Rule. ICLR 2025, arXiv:2412.06464,
section 3. The norm of a head and the swish gate belong to the mechanism here. Departs from the paper: there
is no short convolution before q, k and v, which is the layer's matter, and values are as wide as keys, not
twice as wide.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from subquad.inputs import zero_padding
from subquad.mechanism import Dims, Outputs, Queries, Traits, Valid
from subquad.mechanisms.delta import EPSILON, Rates
from subquad.mechanisms.recurrent import Memory, RecurrentAttention, Row, kept, nothing
from subquad.ops.precision import wide
from subquad.ops.recurrence import delta_product


class GatedDeltaAttention(RecurrentAttention):
    """Linear attention that overwrites, and fades as a whole. It has no options.

    Inputs beyond q, k and v: `beta`, of width 1, the logits of how much is overwritten; `alpha`, of width 1,
    which makes the past fade the faster the larger it is; and `gate`, that of the output.

    Approximates no softmax: it is an associative memory that learns and forgets as it reads. Where nothing
    fades it is the delta rule; it is never equal to softmax attention.

    Not for exact recall of more things than a head is wide, and not where each channel should fade by itself:
    that is `gated-linear`.
    """

    traits = Traits(
        name="gated-delta",
        paper="arXiv:2412.06464",
        family="recurrent",
        causal="strict",
        state="bounded",
    )

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        super().__init__(dims, causal=causal)
        step = torch.empty(dims.heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.log_A = nn.Parameter(torch.empty(dims.heads).uniform_(1, 16).log())
        self.b = nn.Parameter(step.expm1().log())  # softplus(b) = step

    def projections(self) -> dict[str, int]:
        return {**super().projections(), "beta": 1, "alpha": 1, "gate": self.dims.head_dim}

    def definition(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        beta: Rates,
        alpha: Rates,
        gate: Queries,
        *,
        valid: Valid | None = None,
    ) -> Outputs:
        return self._define(q, k, v, beta, alpha, gate, valid=valid)

    def forward(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        beta: Rates,
        alpha: Rates,
        gate: Queries,
        *,
        valid: Valid | None = None,
    ) -> Outputs:
        return self._run(q, k, v, beta, alpha, gate, valid=valid, state=None)[0]

    def step(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        beta: Rates,
        alpha: Rates,
        gate: Queries,
        *,
        valid: Valid | None = None,
        state: Memory | None = None,
    ) -> tuple[Outputs, Memory]:
        return self._run(q, k, v, beta, alpha, gate, valid=valid, state=state)

    def _recur(self, q: Row, k: Row, v: Row, beta: Row, alpha: Row, gate: Row) -> Row:
        q, k, v = (x * x.sigmoid() for x in (q, k, v))
        q, k = (x / (x.norm(dim=-1, keepdim=True) ** 2 + EPSILON).sqrt() for x in (q, k))
        beta = beta.sigmoid()
        alpha = (1 + (alpha + self.b[:, None, None]).exp()) ** -self.log_A.exp()[:, None, None]
        I = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        S, out = k.new_zeros(len(k), k.shape[-1], v.shape[-1]), [v[:, :0]]
        for i in range(k.shape[1]):
            k_i, beta_i = k[:, i, :, None], beta[:, i, :, None]
            S = alpha[:, i, :, None] * (I - beta_i * k_i @ k_i.mT) @ S + beta_i * k_i @ v[:, i, None]
            out.append(q[:, i, None] @ S)
        o = torch.cat(out, 1)
        return gate * gate.sigmoid() * self._normed(o)

    def _advance(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        beta: Rates,
        alpha: Rates,
        gate: Queries,
        *,
        valid: Valid | None,
        state: Memory | None,
    ) -> tuple[Outputs, Memory]:
        q, k, v, beta, alpha, gate = zero_padding(valid, q, k, v, beta, alpha, gate)
        S = nothing(k, v) if state is None else state.S
        beta, alpha, log_A, b = wide(beta, alpha, self.log_A, self.b)
        fading = log_A.exp()[:, None, None] * F.softplus(alpha + b[:, None, None])
        fusion = self._fusion(S, gate, qk_l2norm_eps=EPSILON, swish_values=True)
        out, S = delta_product(q, k, v, beta.sigmoid(), kept(-fading, valid), state=S, fusion=fusion)
        return out, Memory(S)
