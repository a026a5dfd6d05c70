"""Retention: linear attention whose past fades at a fixed rate, each head at its own.

    out_i = swish(gate_i) * norm(q_i^T S_i),    S_i = gamma S_(i-1) + k_i v_i^T
    q_i = e^(i n theta) q_n / sqrt(d),    k_i = e^(i n theta) k_n at position n,    gamma_h = 1 - 2^(-5-h)

so that out_i sums gamma^(i-j) (q_i . k_j) v_j over j <= i: the first head remembers some 32 tokens, each
further head twice as many. Pairs of channels are complex numbers that turn with the position (xPos, its decay
being gamma), and products see differences of positions only. The bidirectional form, which the paper has not,
sums gamma^|i-j| (q_i . k_j) v_j over all j.

Sun, Dong, Huang, Ma, Xia, Xue, Wang, Wei: Retentive Network: A Successor to Transformer for Large Language
Models. arXiv:2307.08621, sections 2.1 and 2.2. The norm of a head and the swish gate belong to the mechanism
here, everything that crosses heads to the layer. Departs from the paper:

- The norm is by root mean square, without a learnt scale and with epsilon 1e-6, as in the authors' code
  (torchscale), where the paper has a group norm, which also subtracts the mean.
- theta, which the paper leaves open, is that of the authors' code: 10000^(-2c / (d - 2)) for pair c.
- The scores are not normalised (end of section 2.2). The norm undoes that where its inputs are large beside
  the root of epsilon. Where they are not, outputs differ: at torchscale's initial weights by 5 to 17 %.
- Values are as wide as keys, not twice as wide.
- Positions count real tokens.

Weights of RetNet carry over where its values are as wide as its keys: its pairs are channels 2c and 2c + 1,
those here c and c + d/2, so that the rows of its maps to queries and keys have to be put into that order.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.bounds import one_of
from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.recurrent import Recurrence, RecurrentAttention, initial, mask_decay
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.ops.shared.rotary import LONGEST_WAVE, turns
from subquad.shards import Shards

FORMS = {"torchscale": 1e-6, "fla": 1e-5}  # and their epsilons

Form = Annotated[str, one_of(*FORMS)]


class RetentionInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    gate: Values  # of the output


class RetentionState(NamedTuple):
    S: Float[Tensor, "b h d e"]
    seen: Int[Tensor, " b"]  # real tokens so far


class Retention(RecurrentAttention):
    """Linear attention that forgets at fixed rates, one for each head.

    form: "torchscale", as in the authors' code; "fla", as in flash-linear-attention: the norm has a learnt
        scale and epsilon 1e-5, and theta is that of rotary embeddings, 10000^(-2c/d).

    An input beyond q, k and v, `gate`, is that of the output. Channels come in pairs, so that `head_dim` must
    be even.

    Approximates no softmax: weights may be negative, sum to nothing in particular, and fall with distance as
    gamma^(i-j). It is never equal to softmax attention.

    Not for recalling what stands far back: a head forgets at its own rate whatever the token, and the slowest
    of eight heads keeps a third after 4,096 tokens. Where the text should decide, use `gated-linear`.
    """

    inputs = RetentionInputs
    traits = Traits(
        name="retention",
        paper="arXiv:2307.08621",
        family="recurrent",
        bidirectional=True,
        causal="strict",
        state="bounded",
        exchange="states",
    )

    def __init__(self, dims: Dims, *, causal: bool, form: Form = "torchscale") -> None:
        super().__init__(dims, causal=causal, affine=form == "fla")
        self.form, self.epsilon = form, FORMS[form]
        if dims.head_dim % 2:
            raise ValueError(
                f"'retention' turns pairs of channels: head_dim must be even, not {dims.head_dim}"
            )

    def _recurrence(self, x: RetentionInputs) -> Recurrence:
        h, t, d = x.q.shape[1:]
        points = d // 2 + (self.form == "fla")  # rotary embeddings leave out the last
        theta = LONGEST_WAVE ** -torch.linspace(0, 1, points, dtype=x.q.dtype, device=x.q.device)[: d // 2]
        gamma = 1 - 2.0 ** -(5 + torch.arange(h, dtype=x.q.dtype, device=x.q.device))[:, None, None]
        n = torch.arange(t, dtype=x.q.dtype, device=x.q.device)[:, None]
        turn = torch.polar(torch.ones_like(n * theta), n * theta)
        turned = (torch.complex(*y.chunk(2, -1)) * turn for y in (x.q, x.k))
        q, k = (torch.cat([y.real, y.imag], -1) for y in turned)  # of whose products the real part is read
        return Recurrence(q / d**0.5, k, x.v, gamma.expand(1, h, t, 1))

    def _outputs(self, o: Values, x: RetentionInputs) -> Outputs:
        return x.gate * x.gate.sigmoid() * self._normed(o)

    def _advance(
        self,
        x: RetentionInputs,
        *,
        valid: Valid | None,
        state: RetentionState | None,
        in_place: bool,
        shards: Shards | None = None,
    ) -> tuple[Outputs, RetentionState]:
        q, k, v, gate = x
        batch, heads, length, d = q.shape
        if state is None:
            first = torch.zeros(batch, dtype=torch.int64, device=q.device)
            state = RetentionState(initial(k, v), first if shards is None else shards.before)
        if valid is None:
            position, new = state.seen[:, None] + torch.arange(length, device=q.device), length
        else:
            position, new = state.seen[:, None] + valid.cumsum(1) - 1, valid.sum(1)
        h = torch.arange(heads, device=q.device, dtype=state.S.dtype)
        log_gamma = torch.log1p(-torch.exp2(-5 - h))[:, None, None].expand(1, heads, length, 1)
        turn = turns(position, d // 2, dtype=state.S.dtype, closed=self.form == "torchscale")
        fusion = self._fusion(state.S, gate, q_scale=d**-0.5, rotary=turn)
        tokens = RecurrenceInputs(q, k, v, mask_decay(log_gamma, valid))
        out, S = self._product(tokens, state=state.S, fusion=fusion, in_place=in_place, shards=shards)
        return out, RetentionState(S, state.seen + new)
