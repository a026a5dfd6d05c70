"""Kimi delta attention (KDA): the delta rule on a memory of which each channel fades by itself.

    out_i = sigmoid(gate_i) * norm(q_i^T S_i)
    S_i = (I - beta_i k_i k_i^T) diag(alpha_i) S_(i-1) + beta_i k_i v_i^T
    alpha_i = exp(-A softplus(alpha'_i + b)),    beta_i = sigmoid(beta'_i)

with q and k of length 1 after silu, and v after silu. alpha' is as wide as a key, beta' of width 1. A > 0 is
learnt for each head, b for each of its channels; they are drawn as in `gated-delta`, which is this with one
alpha' and b for all channels. Where there is nothing to overwrite, it adds as `gated-linear` does. The
bidirectional form, which the paper has not, reads S_i + S'_i - beta_i k_i v_i^T, where S' is made in the
same way from the other end of the sequence.

Kimi Team: Kimi Linear: An Expressive, Efficient Attention Architecture. arXiv:2510.26692; details as in
flash-linear-attention (layers/kda.py) and Hugging Face's Kimi Linear. The norm of a head and the sigmoid gate
belong to the mechanism here. Departs from that layer:

- There is no short convolution before q, k and v, which is the layer's matter; their silu stays.
- The inputs alpha' and gate are of full rank, where the layer makes them through a bottleneck of a head's
  width.
- Queries are not scaled by 1 / sqrt(d), which the norm undoes where its inputs are large beside the root of
  epsilon.
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


class KdaInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    beta: Rates  # logits of how much is overwritten
    alpha: Keys  # the larger, the faster a channel fades
    gate: Values  # of the output


class KdaAttention(RecurrentAttention):
    """Linear attention that overwrites, and whose channels fade each by itself. It has no options.

    Inputs beyond q, k and v: `beta`, of width 1, the logits of how much is overwritten; `alpha`, which makes
    a channel of a key fade the faster the larger it is; and `gate`, that of the output.

    Approximates no softmax: it is an associative memory that learns and forgets as it reads. Where nothing
    fades it is the delta rule; it is never equal to softmax attention.

    Not for exact recall of more things than a head is wide; and not where speed on a CPU decides: a decay for
    each channel has no compiled kernel with the delta rule, and runs by PyTorch's products. `gated-delta` has
    one, with one decay a head.
    """

    inputs = KdaInputs
    traits = Traits(
        name="kda",
        paper="arXiv:2510.26692",
        family="recurrent",
        bidirectional=True,
        causal="strict",
        state="bounded",
        exchange="states",
    )

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        super().__init__(dims, causal=causal)
        self.log_A, self.b = draw_rates(dims.heads, dims.head_dim)

    def _recurrence(self, x: KdaInputs) -> Recurrence:
        q, k, v = (y * y.sigmoid() for y in (x.q, x.k, x.v))
        q, k = (y / (y.norm(dim=-1, keepdim=True) ** 2 + EPSILON).sqrt() for y in (q, k))
        alpha = (1 + (x.alpha + self.b[:, None]).exp()) ** -self.log_A.exp()[:, None, None]
        return Recurrence(q, k, v, alpha, x.beta.sigmoid())

    def _outputs(self, o: Values, x: KdaInputs) -> Outputs:
        return x.gate.sigmoid() * self._normed(o)

    def _advance(
        self,
        x: KdaInputs,
        *,
        valid: Valid | None,
        state: RecurrentState | None,
        in_place: bool,
        shards: Shards | None = None,
    ) -> tuple[Outputs, RecurrentState]:
        S = initial(x.k, x.v) if state is None else state.S
        beta, alpha, log_A, b = wide(x.beta, x.alpha, self.log_A, self.b)
        log_decay = mask_decay(-log_A.exp()[:, None, None] * F.softplus(alpha + b[:, None]), valid)
        fusion = self._fusion(S, qk_l2norm_eps=EPSILON, swish_values=True)
        tokens = RecurrenceInputs(x.q, x.k, x.v, log_decay, beta.sigmoid())
        out, S = self._product(tokens, state=S, fusion=fusion, in_place=in_place, shards=shards)
        return wide(x.gate)[0].sigmoid() * out, RecurrentState(S)
