"""SSD, the core of Mamba-2: a state space model as linear attention with a decay that the text sets.

    out_i = norm(swish(gate_i) * (q_i^T S_i + D v_i))
    S_i = exp(-A dt_i) S_(i-1) + dt_i k_i v_i^T,    dt_i = softplus(dt'_i + b)

with q, k and v after silu: C, B and x in the paper. dt', of width 1, is the logit of a step in time, over
which the system x -> -A x + input is discretised: a long step forgets, and writes what is new with as much
weight. A > 0, b and D are learnt for each head, and drawn as in the authors' code: A evenly between 1 and 16,
softplus(b) between 0.001 and 0.1, evenly in its logarithm, and D = 1. The bidirectional form reads
S_i + S'_i - dt_i k_i v_i^T, where S' is made in the same way from the other end of the sequence.

Dao, Gu: Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality. ICML 2024, arXiv:2405.21060; details as in the authors' code (state-spaces/mamba, mamba2_simple.py).
The norm behind the gate, and the skip D, belong to the mechanism here. Departs from that block:

- There is no short convolution before q, k and v, which is the layer's matter; their silu stays.
- The norm is that of a head, where the block's goes over all channels.
- The bidirectional form is not that of Hydra, arXiv:2407.09941, where each direction has projections of its
  own, and D is set by the text (`recurrent.py` says more).
- Each head has keys and queries of its own, where the block has one B and one C for all (`ngroups=1`), and
  they are as wide as values, not 64 or 128.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
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


class SsdInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    dt: Rates  # logits of steps in time
    gate: Values  # of the output


class SsdAttention(RecurrentAttention):
    """Linear attention that forgets as much as it writes, at a pace that the text sets. It has no options.

    Inputs beyond q, k and v: `dt`, of width 1, the logits of steps in time: the larger, the more is forgotten
    and the more is written; and `gate`, that of the output.

    Approximates no softmax: it is a linear system in time whose steps, inputs and outputs follow the text. It
    is never equal to softmax attention.

    Not for exact recall of many things: what is written is added to what is there, and each head fades as a
    whole. Where a key should recall its last value, use `gated-delta`; where channels should fade each by
    itself, `gated-linear`.
    """

    inputs = SsdInputs
    traits = Traits(
        name="ssd",
        paper="arXiv:2405.21060",
        family="recurrent",
        bidirectional=True,
        causal="strict",
        state="bounded",
        exchange="states",
    )

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        super().__init__(dims, causal=causal)
        self.log_A, self.b = draw_rates(dims.heads)
        self.D = nn.Parameter(torch.ones(dims.heads))

    def _recurrence(self, x: SsdInputs) -> Recurrence:
        q, k, v = (y * y.sigmoid() for y in (x.q, x.k, x.v))
        dt = (1 + (x.dt + self.b[:, None, None]).exp()).log()
        return Recurrence(q, dt * k, v, (-self.log_A.exp()[:, None, None] * dt).exp())

    def _outputs(self, o: Values, x: SsdInputs) -> Outputs:
        v = x.v * x.v.sigmoid()
        return self._normed((o + self.D[:, None, None] * v) * x.gate * x.gate.sigmoid())

    def _advance(
        self,
        x: SsdInputs,
        *,
        valid: Valid | None,
        state: RecurrentState | None,
        in_place: bool,
        shards: Shards | None = None,
    ) -> tuple[Outputs, RecurrentState]:
        q, k, v = F.silu(x.q), F.silu(x.k), F.silu(x.v)
        S = initial(k, v) if state is None else state.S
        assert self.scale is not None
        dt, log_A, b, D, scale = wide(x.dt, self.log_A, self.b, self.D, self.scale)
        dt = F.softplus(dt + b[:, None, None])
        log_decay = mask_decay(-log_A.exp()[:, None, None] * dt, valid)
        tokens = RecurrenceInputs(q, (dt * k).to(k.dtype), v, log_decay)
        o, S = self._product(tokens, state=S, in_place=in_place, shards=shards)
        o = torch.addcmul(o, D[:, None, None], v) * F.silu(wide(x.gate)[0])
        return F.rms_norm(o, o.shape[-1:], scale, self.epsilon), RecurrentState(S)
