"""Retention: linear attention whose past fades at a fixed rate, each head at its own.

    out_i = swish(gate_i) * norm(q_i^T S_i),    S_i = gamma S_(i-1) + k_i v_i^T
    q_i = e^(i n theta) q_n / sqrt(d),    k_i = e^(i n theta) k_n at position n,    gamma_h = 1 - 2^(-5-h)

so that out_i sums gamma^(i-j) (q_i . k_j) v_j over j <= i: the first head remembers some 32 tokens, each
further head twice as many. Pairs of channels are complex numbers that turn with the position (xPos, its decay
being gamma), and products see differences of positions only.

Sun, Dong, Huang, Ma, Xia, Xue, Wang, Wei: Retentive Network: A Successor to Transformer for Large Language
Models. arXiv:2307.08621, sections 2.1 and 2.2. The norm of a head and the swish gate belong to the mechanism
here, everything that crosses heads to the layer. Departs from the paper:

- The norm is by root mean square with a learnt scale, as in the authors' code, where the paper has a group
  norm, which also subtracts the mean.
- The scores are not normalised (end of section 2.2): the norm after them would undo it.
- Values are as wide as keys, not twice as wide.
- theta is that of rotary embeddings, 10000^(-2c/d) for pair c, which the paper leaves open.
- Positions count real tokens.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.mechanism import Dims, Mixed, Queries, Traits, Valid
from subquad.mechanisms.recurrent import RecurrentAttention, Row, kept, nothing, root_mean_square
from subquad.ops.padding import hide
from subquad.ops.recurrence import decayed_product
from subquad.ops.rotary import LONGEST_WAVE, turns


class Turning(NamedTuple):
    S: Float[Tensor, "b h d e"]
    seen: Int[Tensor, " b"]  # real tokens so far


class Retention(RecurrentAttention):
    """Linear attention that forgets at fixed rates, one for each head; it has no options.

    `gate` is an input as wide as a value. Heads come in pairs of channels: `head_dim` must be even.

    Approximates no softmax: weights may be negative, sum to nothing in particular, and fall with distance as
    gamma^(i-j). It is never equal to softmax attention.

    Not for recalling what stands far back: a head forgets at its own rate whatever the token, and the slowest
    of eight heads keeps a third after 4,096 tokens. Where the text should decide, use `gated-linear`.
    """

    traits = Traits(
        name="retention",
        paper="arXiv:2307.08621",
        family="recurrent",
        causal="strict",
        state="bounded",
    )

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        super().__init__(dims, causal=causal)
        if dims.head_dim % 2:
            raise ValueError(
                f"'retention' turns pairs of channels: head_dim must be even, not {dims.head_dim}"
            )

    def projections(self) -> dict[str, int]:
        return dict.fromkeys(("q", "k", "v", "gate"), self.dims.head_dim)

    def definition(
        self, q: Queries, k: Queries, v: Queries, gate: Queries, *, valid: Valid | None = None
    ) -> Mixed:
        return self._define(q, k, v, gate, valid=valid)

    def forward(
        self, q: Queries, k: Queries, v: Queries, gate: Queries, *, valid: Valid | None = None
    ) -> Mixed:
        return self._run(q, k, v, gate, valid=valid, state=None)[0]

    def step(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        gate: Queries,
        *,
        valid: Valid | None = None,
        state: Turning | None = None,
    ) -> tuple[Mixed, Turning]:
        return self._run(q, k, v, gate, valid=valid, state=state)

    def _recur(self, q: Row, k: Row, v: Row, gate: Row) -> Row:
        h, t, d = q.shape
        theta = LONGEST_WAVE ** (-2 * torch.arange(d // 2, dtype=q.dtype, device=q.device) / d)
        gamma = 1 - 2.0 ** -(5 + torch.arange(h, dtype=q.dtype, device=q.device))[:, None, None]
        S, out = torch.zeros(h, d // 2, d, dtype=torch.complex(q, q).dtype, device=q.device), []
        for n in range(t):
            turn = torch.polar(torch.ones_like(theta), n * theta)
            q_n, k_n = (torch.complex(*x[:, n].chunk(2, -1)) * turn for x in (q, k))
            S = gamma * S + k_n.conj()[:, :, None] * v[:, n, None]
            out.append((q_n[:, None] @ S).real / d**0.5)
        o = torch.cat([q[:, :0], *out], 1)
        return gate * gate.sigmoid() * o / root_mean_square(o) * self.scale

    def _advance(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        gate: Queries,
        *,
        valid: Valid | None,
        state: Turning | None,
    ) -> tuple[Mixed, Turning]:
        q, k, v, gate = hide(valid, q, k, v, gate)
        batch, heads, length, d = q.shape
        if state is None:
            state = Turning(nothing(k, v), torch.zeros(batch, dtype=torch.int64, device=q.device))
        if valid is None:
            position, new = state.seen[:, None] + torch.arange(length, device=q.device), length
        else:
            position, new = state.seen[:, None] + valid.cumsum(1) - 1, valid.sum(1)
        h = torch.arange(heads, device=q.device, dtype=state.S.dtype)
        log_gamma = torch.log1p(-torch.exp2(-5 - h))[:, None, None].expand(1, heads, length, 1)
        around = self._around(gate, q_scale=d**-0.5, turn=turns(position, d // 2, dtype=state.S.dtype))
        out, S = decayed_product(q, k, v, kept(log_gamma, valid), state=state.S, around=around)
        return out, Turning(S, state.seen + new)
