"""Forgetting attention (FoX): softmax attention whose scores fade by gates that the text sets.

    out_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(d) + sum_{j < l <= i} log f_l) v_j
    f_l = sigmoid(forget_l)

A weight is multiplied by the gates of all tokens since its key, as a gated recurrence's is, and then
normalised. Gates tell how old a key is, so that no positions are needed.

With c_i = log f_1 + ... + log f_i the sum is c_i - c_j, of which c_i is the same for all keys of a query and
cancels: -c_j stands in one more channel of the key, against a constant in the query, and the rest is
PyTorch's fused attention, gradients included. Queries go by blocks, each of which counts c from its own first
token: far from there small differences of a long sum would be lost to rounding. Work is O(t^2 d), memory
O(t d).

Lin, Nikishin, He, Courville: Forgetting Transformer: Softmax Attention with a Forget Gate. ICLR 2025,
arXiv:2503.02130. Output gate and norm, norms of queries and keys, and the shift of keys and values of the
paper's "Pro" block are left to the layer.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.attention import attention
from subquad.ops.shared.allocation import concat_into
from subquad.ops.shared.graphed import graphed
from subquad.ops.shared.packing import Packing
from subquad.ops.shared.precision import wide, widened
from subquad.ops.shared.scan import recompute, scan
from subquad.ops.shared.slots import KVCache, extend, reserve

QUERY_BLOCK = 256  # queries that are taken at once: the fewer, the shorter the sums of log f

Gates = Float[Tensor, "b h s 1"]


class ForgettingInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    forget: Gates  # logits of the forget gates


class ForgettingAttention(Mechanism):
    """Softmax attention with a forget gate for each token and head.

    gate_bias: what is added to the logits of the gates. At 0, where the authors' code begins, a weight halves
        with about every token until gates have learnt to be slower. At 4 they begin near 0.98, and at 40
        nothing fades.

    An input beyond q, k and v, `forget`, of width 1, holds the logits of the gates.

    Approximates nothing: it is softmax attention with a memory that fades, and equals plain softmax attention
    where no gate closes. A stream remembers all keys and values so far, and how far each has faded.

    Not for long sequences, as softmax attention is not: what has faded is computed all the same. It is the
    exact baseline of the gated recurrences, such as `gated-linear`, whose state does not grow.
    """

    inputs = ForgettingInputs
    traits = Traits(
        name="forgetting",
        paper="arXiv:2503.02130",
        family="exact",
        causal="strict",
        state="growing",
        cost=2.0,
        normalised=True,
        limit={"gate_bias": 40.0},
    )

    def __init__(self, dims: Dims, *, causal: bool, gate_bias: float = 0.0) -> None:
        super().__init__(dims, causal=causal)
        self.gate_bias = gate_bias

    def turned_inputs(self) -> tuple[str, ...]:
        return "q", "k"

    def definition(
        self, q: Queries, k: Keys, v: Values, forget: Gates, *, valid: Valid | None = None
    ) -> Outputs:
        """Row by row without its padding: all scores, each with its own sum of logarithms."""
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            q_row, k_row, v_row, logits = (x[row][:, real] for x in (q, k, v, forget))
            log_f = F.logsigmoid(logits[..., 0] + self.gate_bias)
            n = log_f.shape[1]
            i, l, j = (torch.arange(n, device=q.device).view(shape) for shape in ((n, 1, 1), (n, 1), (n,)))
            between = ((j < l) & (l <= i)).to(log_f.dtype)
            scores = q_row @ k_row.mT / q.shape[-1] ** 0.5 + torch.einsum("hl,ilj->hij", log_f, between)
            scores = scores.masked_fill(j > i[..., 0], -torch.inf)
            out[row, :, real] = scores.softmax(-1) @ v_row
        return out

    def forward(
        self, q: Queries, k: Keys, v: Values, forget: Gates, *, valid: Valid | None = None
    ) -> Outputs:
        faded = -self._log_gates(forget, valid).cumsum(2)
        q, k, v = wide(q, k, v)
        return forgetting_attention(q, k, faded, v, valid)

    def _log_gates(self, forget: Gates, valid: Valid | None) -> Gates:
        """log f, in double precision since sums of it are long; 0 at padding, where nothing fades."""
        log_f = F.logsigmoid(forget.double() + self.gate_bias)
        return log_f if valid is None else log_f.masked_fill(~valid[:, None, :, None], 0)

    def step(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        forget: Gates,
        *,
        valid: Valid | None = None,
        state: KVCache | None = None,
        in_place: bool = False,
    ) -> tuple[Outputs, KVCache]:
        """The last channel of the state's keys holds the sum of log f since the key."""

        def advance(
            q: Queries, k: Keys, v: Values, forget: Gates, *, valid: Valid | None, state: KVCache | None
        ) -> tuple[Outputs, KVCache]:
            return self._chunk(q, k, v, forget, valid=valid, state=state, in_place=in_place)

        return scan(advance, q, k, v, forget, valid=valid, state=state, chunk=QUERY_BLOCK)

    def _chunk(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        forget: Gates,
        *,
        valid: Valid | None,
        state: KVCache | None,
        in_place: bool,
    ) -> tuple[Outputs, KVCache]:
        packing, log_f = Packing.of(valid, like=k), self._log_gates(forget, valid)
        before = 0 if state is None else state.count[:, None]
        faded = (-log_f.cumsum(2)).to(widened(k.dtype))
        cache = extend(state, torch.cat([k, faded], -1), v, packing=packing, in_place=in_place)
        known = torch.arange(1, q.shape[2] + 1, device=q.device)[None] if valid is None else valid.cumsum(1)
        seen = torch.arange(cache.k.shape[2], device=q.device) < (before + known)[..., None]
        keys, since = cache.k[..., :-1], cache.k[..., -1:]
        out = faded_attention(*wide(q, keys, since, cache.v), seen=seen[:, None])
        total = log_f.sum(2, keepdim=True).to(since.dtype)
        if in_place and state is not None:
            since.add_(total)
            return out, cache
        return out, cache._replace(k=torch.cat([keys, since + total], -1))

    def reserve(self, state: KVCache, tokens: int) -> KVCache:
        return reserve(state, tokens)


@graphed(
    "forgetting_attention",
    "Tensor q, Tensor k, Tensor faded, Tensor v, Tensor? valid",
    learnt=4,
    shape=lambda q, k, faded, v, *_: v.shape,
)
def forgetting_attention(q: Queries, k: Keys, faded: Gates, v: Values, valid: Valid | None) -> Outputs:
    """Attention to the keys up to each query, from whose scores goes what has `faded` since."""

    def block(q: Queries, k: Keys, faded: Gates, v: Values) -> Outputs:
        stop = k.shape[2]
        start = stop - q.shape[2]
        since = faded - faded[:, :, start : start + 1].detach()
        i, j = torch.arange(start, stop, device=q.device)[:, None], torch.arange(stop, device=q.device)
        seen = (j <= i)[None, None]
        if valid is not None:
            seen = seen & valid[:, None, None, :stop]
        return faded_attention(q, k, since.to(k.dtype), v, seen=seen)

    stops = [*range(QUERY_BLOCK, q.shape[2], QUERY_BLOCK), q.shape[2]]
    parts = zip(q.split(QUERY_BLOCK, 2), stops, strict=True)
    outs = (recompute(block, own, k[:, :, :stop], faded[:, :, :stop], v[:, :, :stop]) for own, stop in parts)
    return concat_into(outs, v, *v.shape, dim=2).contiguous()


def faded_attention(
    q: Queries, k: Keys, since: Gates, v: Values, *, seen: Bool[Tensor, "#b 1 t s"]
) -> Outputs:
    """Softmax attention by scores q . k / sqrt(d) + since: one more channel of q and k.

    Fused kernels take queries, keys and values of one width, and most only multiples of eight.
    """
    d, e = q.shape[3], v.shape[3]
    width = -(-max(d + 1, e) // 8) * 8
    q = torch.cat([q * (width / d) ** 0.5, torch.full_like(q[..., :1], width**0.5)], -1)
    q, k, v = (F.pad(x, (0, width - x.shape[3])) for x in (q, torch.cat([k, since], -1), v))
    return attention(q, k, v, seen=seen)[..., :e]
