"""What the gated recurrences share: a matrix for each head that is read, faded and written token by token.

    out_i = norm(q_i^T S_i),    S_i = (what is left of S_(i-1)) + k_i (what is new)^T

A member says what is left and what is new: the past fades by alpha, one for each channel of a key or one for
all, and with beta the delta rule replaces what a key recalls. Its definition is that recurrence, one token
after the other. Its fast form runs by chunks of matrix products, and what is done to tokens before and after
runs with it (`ops/recurrence/`). A stream goes on from S.

The bidirectional form reads two such matrices: one has read the tokens up to i, the other those from i on, by
the same rule from the other end of the sequence, with the same weights. What i writes itself, which stands in
both, counts once (`ops/recurrence/both_ways.py`):

    out_i = norm(q_i^T (S_i + S'_i - k_i (what is new)^T))

so that where nothing fades all tokens see each other alike, and a reversed sequence has reversed outputs (but
for retention, whose turns tell what is before from what is behind). Weights and inputs are those of the
causal form. Hydra has two triangles and one diagonal, too (Hwang, Lahoti, Dao, Gu: Bidirectional State Space
Models Through Generalized Matrix Mixers. NeurIPS 2024, arXiv:2407.09941); but in the authors' code each
direction has keys, queries and decays of its own, what a query reads is handed to its neighbour, and the
diagonal is a factor that the text sets, and nothing else.

Weights may be of any sign, and nothing divides by their sum. Instead each head divides its output by the
root mean square of its channels, and multiplies it by a scale for each channel, which most members learn.

Padding writes nothing and fades nothing, so that S is what it would be without it.
"""

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, State, Valid, Values
from subquad.ops.recurrence import NOTHING, decayed_product, delta_product
from subquad.ops.recurrence.both_ways import both_ways
from subquad.ops.recurrence.rows import Fusion, Gates, RecurrenceInputs
from subquad.ops.recurrence.sharing import compose, shard_map
from subquad.ops.shared.precision import wide
from subquad.shards import Shards

Matrix = Float[Tensor, "b h d e"]
Rates = Float[Tensor, "b h t 1"]


class Recurrence(NamedTuple):
    """What the definition's recurrence takes of each token."""

    q: Queries
    k: Keys
    v: Values
    alpha: Float[Tensor, "#b h t #d"]  # what is left of the past
    beta: Rates | None = None  # how much is overwritten, by the delta rule; None: keys and values are added

    def reversed(self) -> "Recurrence":
        q, k, v, alpha, beta = self
        other = None if beta is None else beta.flip(2)
        return Recurrence(q.flip(2), k.flip(2), v.flip(2), alpha.flip(2), other)


class RecurrentState(NamedTuple):
    S: Matrix


class RecurrentAttention(Mechanism):
    """Owns the recurrence, streaming and the norm.

    A member names its `inputs`, writes `_recurrence` and `_outputs` for the definition, and `_advance`.
    """

    epsilon: float = 1e-5  # under the root mean square, in the layers of flash-linear-attention
    scale: nn.Parameter | None

    def __init__(self, dims: Dims, *, causal: bool, affine: bool = True) -> None:
        """`affine`: outputs are multiplied by a learnt scale after the norm."""
        super().__init__(dims, causal=causal)
        self.register_parameter("scale", nn.Parameter(torch.ones(dims.head_dim)) if affine else None)

    def turned_inputs(self) -> tuple[str, ...]:
        return "q", "k"  # the others are gates

    @abstractmethod
    def _recurrence(self, x: Any) -> Recurrence:
        """What is made of `inputs` without padding, by the paper's formulas."""

    @abstractmethod
    def _outputs(self, o: Values, x: Any) -> Outputs:
        """What is made of what queries read, by the paper's formulas."""

    @abstractmethod
    def _advance(
        self, x: Any, *, valid: Valid | None, state: Any, in_place: bool, shards: Shards | None = None
    ) -> tuple[Outputs, State]:
        """The same for the next `inputs` of a stream, by chunks; `in_place`: S may be written over.

        shards: of a sequence that several ranks share, these inputs being one's own. None: of none.
        """

    def definition(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding."""
        out = torch.zeros_like(inputs[2])
        for row in range(len(out)):
            real = slice(None) if valid is None else valid[row]
            x = self.inputs(*wide(*(x[row : row + 1, :, real] for x in inputs)))
            tokens = self._recurrence(x)
            o = recur(tokens)
            if not self.causal:
                o = o + recur(tokens.reversed(), own=False).flip(2)
            out[row : row + 1, :, real] = self._outputs(o, x).to(out.dtype)
        return out

    def forward(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        return self._advance(self.inputs(*inputs), valid=valid, state=None, in_place=False)[0]

    def sharded(self, *inputs: Tensor, valid: Valid | None = None, shards: Shards) -> Outputs:
        x = self.inputs(*inputs)
        return self._advance(x, valid=valid, state=None, in_place=False, shards=shards)[0]

    def step(
        self,
        *inputs: Tensor,
        valid: Valid | None = None,
        state: State | None = None,
        in_place: bool = False,
    ) -> tuple[Outputs, State]:
        return self._advance(self.inputs(*inputs), valid=valid, state=state, in_place=in_place)

    def _product(
        self,
        tokens: RecurrenceInputs,
        *,
        state: Matrix,
        in_place: bool,
        fusion: Fusion = NOTHING,
        shards: Shards | None = None,
    ) -> tuple[Outputs, Matrix]:
        """What queries read, with what is done to rows around that; and the state after, if causal."""
        if not self.causal:
            return both_ways(tokens, state=state, fusion=fusion, shards=shards), state
        if shards is not None:
            maps = shards.gather(shard_map(tokens, zeros=state, fusion=fusion))
            state = compose(maps[: shards.rank], e=state.shape[-1])
        q, k, v, log_decay, beta = tokens
        if beta is None:
            return decayed_product(q, k, v, log_decay, state=state, fusion=fusion, in_place=in_place)
        return delta_product(q, k, v, beta, log_decay, state=state, fusion=fusion, in_place=in_place)

    def _normed(self, o: Values) -> Values:
        """The norm of outputs, for the definition."""
        o = o / (o.square().mean(-1, keepdim=True) + self.epsilon).sqrt()
        return o if self.scale is None else o * self.scale

    def _fusion(self, S: Matrix, gate: Gates | None = None, **before: Any) -> Fusion:
        """The norm of outputs and their gate, and what is to be done to tokens before."""
        scale = S.new_ones(S.shape[3]) if self.scale is None else wide(self.scale)[0]
        return Fusion(rms_norm_eps=self.epsilon, scale=scale, gate=gate, **before)


def recur(x: Recurrence, *, own: bool = True) -> Values:
    """What queries read, token by token; without `own`, each before its token is written."""
    (q, k, v, alpha, beta), out = x, [x.v[:, :, :0]]
    alpha = alpha.expand(*k.shape[:3], -1)
    S = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    for i in range(k.shape[2]):
        k_i, v_i = k[:, :, i, :, None], v[:, :, i, None]
        before = alpha[:, :, i, :, None] * S
        if beta is None:
            S = before + k_i @ v_i
        else:
            beta_i = beta[:, :, i, :, None]
            before = before - beta_i * k_i @ (k_i.mT @ before)
            S = before + beta_i * k_i @ v_i
        out.append(q[:, :, i, None] @ (S if own else before))
    return torch.cat(out, 2)


def draw_rates(heads: int, *channels: int) -> tuple[nn.Parameter, nn.Parameter]:
    """log A for each head, and b for each, or for each of its channels: alpha = exp(-A softplus(alpha' + b)).

    As Mamba-2 draws them: A evenly between 1 and 16, and softplus(b) between 0.001 and 0.1, evenly in its
    logarithm.
    """
    step = torch.empty(heads, *channels).uniform_(math.log(0.001), math.log(0.1)).exp()
    log_A = torch.empty(heads).uniform_(1, 16).log()
    return nn.Parameter(log_A), nn.Parameter(step.expm1().log())


def initial(k: Float[Tensor, "b h t d"], v: Float[Tensor, "b h t e"]) -> Matrix:
    """What is remembered before the first token, in float32 at least."""
    wider = torch.promote_types(k.dtype, torch.float32)
    return k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3], dtype=wider)


def mask_decay(log_decay: Float[Tensor, "#b #h t #d"], valid: Valid | None) -> Float[Tensor, "#b #h t #d"]:
    """Nothing fades at padding."""
    return log_decay if valid is None else log_decay.masked_fill(~valid[:, None, :, None], 0)
