"""Gated DeltaNet: the delta rule on a memory that fades when the text says so.

    out_i = swish(gate_i) * norm(q_i^T S_i)
    S_i = alpha_i (I - beta_i k_i k_i^T) S_(i-1) + beta_i k_i v_i^T
    alpha_i = exp(-A softplus(alpha'_i + b)),    beta_i = sigmoid(beta'_i)

with q and k of length 1 after silu, v after silu, and inputs alpha' and beta' of width 1. A > 0 and b are
learnt, a pair for each head, and drawn as in Mamba-2: A evenly between 1 and 16, and b such that softplus(b)
lies between 0.001 and 0.1, evenly in its logarithm. At alpha = 1 it is the delta rule, at beta = 0 the past
only fades, and at alpha = 0 it is forgotten at once, which the delta rule cannot do. The
bidirectional form, which the paper has not, reads S_i + S'_i - beta_i k_i v_i^T, where S' is made in the
same way from the other end of the sequence.

Yang, Kautz, Hatamizadeh: Gated Delta Networks: Improving Mamba2 with Delta Rule. ICLR 2025, arXiv:2412.06464,
section 3. The norm of a head and the swish gate belong to the mechanism here. Departs from the paper: there
is no short convolution before q, k and v, which is the layer's matter, and values are as wide as keys, not
twice as wide.
"""

from typing import NamedTuple

from torch.nn import functional as F

from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.delta import EPSILON
from subquad.mechanisms.recurrent import (
    Rates,
    Recurrence,
    RecurrentAttention,
    RecurrentState,
    draw_rates,
    initial,
    mask_decay,
)
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.ops.shared.precision import wide
from subquad.shards import Shards


class GatedDeltaInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    beta: Rates  # logits of how much is overwritten
    alpha: Rates  # the larger, the faster the past fades
    gate: Values  # of the output


class GatedDeltaAttention(RecurrentAttention):
    """Linear attention that overwrites, and fades as a whole. It has no options.

    Inputs beyond q, k and v: `beta`, of width 1, the logits of how much is overwritten; `alpha`, of width 1,
    which makes the past fade the faster the larger it is; and `gate`, that of the output.

    Approximates no softmax: it is an associative memory that learns and forgets as it reads. Where nothing
    fades it is the delta rule; it is never equal to softmax attention.

    Not for exact recall of more things than a head is wide, and not where each channel should fade by itself:
    that is `gated-linear`.
    """

    inputs = GatedDeltaInputs
    traits = Traits(
        name="gated-delta",
        paper="arXiv:2412.06464",
        family="recurrent",
        bidirectional=True,
        causal="strict",
        state="bounded",
        exchange="states",
    )

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        super().__init__(dims, causal=causal)
        self.log_A, self.b = draw_rates(dims.heads)

    def _recurrence(self, x: GatedDeltaInputs) -> Recurrence:
        q, k, v = (y * y.sigmoid() for y in (x.q, x.k, x.v))
        q, k = (y / (y.norm(dim=-1, keepdim=True) ** 2 + EPSILON).sqrt() for y in (q, k))
        alpha = (1 + (x.alpha + self.b[:, None, None]).exp()) ** -self.log_A.exp()[:, None, None]
        return Recurrence(q, k, v, alpha, x.beta.sigmoid())

    def _outputs(self, o: Values, x: GatedDeltaInputs) -> Outputs:
        return x.gate * x.gate.sigmoid() * self._normed(o)

    def _advance(
        self,
        x: GatedDeltaInputs,
        *,
        valid: Valid | None,
        state: RecurrentState | None,
        in_place: bool,
        shards: Shards | None = None,
    ) -> tuple[Outputs, RecurrentState]:
        S = initial(x.k, x.v) if state is None else state.S
        beta, alpha, log_A, b = wide(x.beta, x.alpha, self.log_A, self.b)
        log_decay = mask_decay(-log_A.exp()[:, None, None] * F.softplus(alpha + b[:, None, None]), valid)
        fusion = self._fusion(S, x.gate, qk_l2norm_eps=EPSILON, swish_values=True)
        tokens = RecurrenceInputs(x.q, x.k, x.v, log_decay, beta.sigmoid())
        out, S = self._product(tokens, state=S, fusion=fusion, in_place=in_place, shards=shards)
        return out, RecurrentState(S)
