"""Lightning attention: linear attention whose past fades at a fixed rate, each head at its own.

    out_i = sigmoid(gate_i) * norm(q_i^T S_i),    S_i = exp(-s_h) S_(i-1) + k_i v_i^T
    s_h = 2^(-8 h / H) for heads h = 1, ..., H

with q, k and v after silu. There are no rotations and no scale, which is what sets it apart from `retention`,
and the rates reach further: of eight heads the first forgets within some two tokens, the last within 256.
The bidirectional form, which the papers have not, weighs by exp(-s_h |i-j|).

Qin, Sun, Li, Shen, Sun, Zhong: Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in
Large Language Models. arXiv:2401.04658, which is how it is computed: inside a block by products, between
blocks by the state (`ops/recurrence/decay.py`). The layer is that of MiniMax-01, arXiv:2501.08313, as Hugging
Face has it (`transformers`, `models/minimax`), from where rates, gate and epsilon are. The norm of a head and
the sigmoid gate belong to the mechanism here. Departs from that layer: its norm goes over all heads at once,
and its layers forget the more slowly the later they stand, which is the option `layers`.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from subquad.bounds import CountOrZero
from subquad.mechanism import Dims, Keys, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.recurrent import Recurrence, RecurrentAttention, RecurrentState, initial, mask_decay
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.ops.shared.precision import wide
from subquad.shards import Shards


class LightningInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    gate: Values  # of the output


class LightningAttention(RecurrentAttention):
    """Linear attention that forgets at fixed rates, one for each head.

    layers: how many layers the network has, so that rates fall evenly from the first to the last, which
        hardly forgets: layer l of them multiplies its rates by 1 - l / (layers - 1). 0: all have the same.

    An input beyond q, k and v, `gate`, is that of the output.

    Approximates no softmax: weights are products of silu's values, which may be slightly negative, and fall
    with distance as exp(-s_h (i-j)). It is never equal to softmax attention.

    Not for recalling what stands far back, unless `layers` is given: the slowest head keeps a third after 256
    tokens, whatever the text. Where the text should decide, use `ssd` or `gated-linear`.
    """

    inputs = LightningInputs
    traits = Traits(
        name="lightning",
        paper="arXiv:2401.04658",
        family="recurrent",
        bidirectional=True,
        causal="strict",
        state="bounded",
        exchange="states",
    )

    def __init__(self, dims: Dims, *, causal: bool, layers: CountOrZero = 0) -> None:
        super().__init__(dims, causal=causal)
        if 0 < layers <= dims.layer:
            raise ValueError(
                f"'lightning' is built for layer {dims.layer}, counted from 0, of layers={layers}: give the "
                "number of all layers of the network, or 0 for the same rates in each"
            )
        # of the last layer a trace is left, as in Hugging Face's code
        self.factor = 1 - dims.layer / (layers - 1 + 1e-5) + 1e-5 if layers else 1.0

    def _recurrence(self, x: LightningInputs) -> Recurrence:
        q, k, v = (y * y.sigmoid() for y in (x.q, x.k, x.v))
        H, t = q.shape[1:3]
        s = q.new_tensor([2 ** (-8 * h / H) for h in range(1, H + 1)]) * self.factor
        return Recurrence(q, k, v, (-s).exp()[:, None, None].expand(1, H, t, 1))

    def _outputs(self, o: Values, x: LightningInputs) -> Outputs:
        return x.gate.sigmoid() * self._normed(o)

    def _advance(
        self,
        x: LightningInputs,
        *,
        valid: Valid | None,
        state: RecurrentState | None,
        in_place: bool,
        shards: Shards | None = None,
    ) -> tuple[Outputs, RecurrentState]:
        q, k, v, gate = wide(*x)  # a rounding of silu would not be one of the inputs
        S = initial(k, v) if state is None else state.S
        heads, length = q.shape[1:3]
        h = torch.arange(1, heads + 1, device=q.device, dtype=S.dtype)
        log_decay = (-self.factor * torch.exp2(h * (-8 / heads)))[:, None, None].expand(1, heads, length, 1)
        tokens = RecurrenceInputs(F.silu(q), F.silu(k), v, mask_decay(log_decay, valid))
        fusion = self._fusion(S, swish_values=True)
        out, S = self._product(tokens, state=S, fusion=fusion, in_place=in_place, shards=shards)
        return gate.sigmoid() * out, RecurrentState(S)
