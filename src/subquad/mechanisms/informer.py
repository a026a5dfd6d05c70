"""Informer: only the few queries whose attention would be far from uniform attend; the others get a mean.

    M(q_i) = max_j q_i . k_j / sqrt(d) - mean_j q_i . k_j / sqrt(d)
    out_i  = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j     for the u queries with the largest M
    out_i  = the mean of all v_j, causal of all up to i     for the others

A query whose scores differ little weighs all keys alike, and uniform weights need no scores. M is a bound
on the divergence of a query's weights from uniform ones, and is estimated from scores with a random sample
of keys, u again. Of queries with equal M the first are chosen. With u = factor * ceil(ln n) the work is
O(n log n).

Zhou, Zhang, Peng, Zhang, Li, Xiong, Zhang: Informer: Beyond Efficient Transformer for Long Sequence
Time-Series Forecasting. AAAI 2021, arXiv:2012.07436, section 3.1. How it is laid out here, and where it
departs:

- The sample is a pure function of `seed`, the layer, the number of real tokens and where a token stands among
  them. The authors' code draws from the global generator, also when evaluating.
- All queries, heads and rows of a length share one sample without repetition, which makes of a gather of
  n u keys one matrix product. The mean in M is over the sample; the authors' code divides its sum by n.
- The causal form gives the running mean of values, which is what uniform weights would give. The authors'
  code gives their sum, which grows with the position.
- Which queries are chosen depends on the whole sequence, so only values are causal.
- Queries and keys are of one sequence; the authors' code also takes keys of another.
- Left out is the rest of the paper's network: distilling, by which each layer of the encoder hands on half as
  many tokens (a convolution, ELU, max-pooling), and the decoder that makes a whole forecast in one pass.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.bounds import Count
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.shared.generators import seeded
from subquad.ops.shared.graphed import graphed
from subquad.ops.shared.packing import Packing, take
from subquad.ops.shared.precision import wide


class Informer(Mechanism):
    """ProbSparse: softmax attention for the queries that need it most, the mean of values for the others.

    factor: how many queries attend, and how many keys they are judged by, in units of ceil(ln n).
    seed: of the sample of keys, which each layer draws anew.

    Approximates softmax attention in which most queries attend nearly uniformly. It equals softmax attention
    where `factor` is so large that every query is chosen.

    Not for cross-attention, streaming, or language models: causal outputs do not see later values, but later
    tokens change which earlier queries attend. Not for models in which most tokens must look something up.
    """

    key: Int[Tensor, " two"]

    zeros_padding = False
    traits = Traits(
        name="informer",
        paper="arXiv:2012.07436",
        family="content",
        bidirectional=True,
        causal="values",
        cost=1.2,  # n log n; the logarithm's share at a few hundred tokens
        normalised=True,
        limit={"factor": 24},
        tiny={"factor": 1},
    )

    def __init__(self, dims: Dims, *, causal: bool, factor: Count = 5, seed: int = 0) -> None:
        super().__init__(dims, causal=causal)
        self.factor = factor
        self.register_buffer("key", torch.zeros(2, dtype=torch.int64))
        self.redraw(generator=seeded(seed, dims.layer))

    def redraw(self, *, generator: torch.Generator) -> None:
        self.key.copy_(torch.randint(2**31, (2,), generator=generator))

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding, with the scores of all pairs."""
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            Q, K, V = (x[row][:, real] for x in (q, k, v))
            n = Q.shape[1]
            u = 0 if n < 2 else min(n, self.factor * math.ceil(math.log(n)))
            scores = Q @ K.mT / Q.shape[-1] ** 0.5
            seen = torch.ones_like(scores, dtype=torch.bool)
            if self.causal:
                seen = seen.tril()
            uniform = seen.to(V.dtype) / seen.sum(-1, keepdim=True)
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            sample = self._shuffled(n)[:u]
            if u > 0:
                M = scores[..., sample].amax(-1) - scores[..., sample].mean(-1)
                first = M.sort(descending=True, stable=True).indices[:, :u]
                chosen = torch.zeros_like(M, dtype=torch.bool).scatter(1, first, True)
                uniform = torch.where(chosen[..., None], weights, uniform)
            out[row][:, real] = uniform @ V
        return out

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        packing = Packing.of(valid, like=k)
        Q, K, V = wide(*(packing.pack(x) for x in (q, k, v)))
        return packing.unpack(sparsely(Q, K, V, packing.count, self.key, self.factor, self.causal))

    def _shuffled(self, n: int) -> Int[Tensor, " n"]:
        return shuffled(n, self.key)


@graphed(
    "probsparse",
    "Tensor q, Tensor k, Tensor v, Tensor count, Tensor key, int factor, bool causal",
    learnt=3,
    shape=lambda q, k, v, *_: v.shape,
)
def sparsely(
    q: Queries,
    k: Keys,
    v: Values,
    count: Int[Tensor, " b"],
    key: Int[Tensor, " two"],
    factor: int,
    causal: bool,
) -> Outputs:
    """Attention for the chosen queries of packed tokens, of which the first `count` are real, and means."""
    n = q.shape[2]
    u = torch.minimum(count, factor * count.clamp(min=1).double().log().ceil().long())
    most = 0 if n < 2 else min(n, factor * math.ceil(math.log(n)))
    chosen = choose(q.detach(), k.detach(), count, u, most, key)
    passive = mean(v, count, causal=causal)
    active = take_each(q, chosen) @ k.mT / q.shape[-1] ** 0.5
    j = torch.arange(n, device=q.device)
    seen = (j < count[:, None])[:, None, None]
    if causal:
        seen = seen & (j <= chosen[..., None])
    active = active.masked_fill(~seen, torch.finfo(active.dtype).min).softmax(-1) @ v
    spared = torch.arange(most, device=q.device) >= u[:, None]
    active = torch.where(spared[:, None, :, None], take_each(passive, chosen), active)
    return passive.scatter(2, chosen[..., None].expand(active.shape), active)


def choose(
    q: Queries, k: Keys, count: Int[Tensor, " b"], u: Int[Tensor, " b"], most: int, key: Int[Tensor, " two"]
) -> Int[Tensor, "b h u"]:
    """The queries with the largest M among a row's first `count`, of which only the first `u` count."""
    n = q.shape[2]
    if most == 0:
        return torch.zeros(*q.shape[:2], 0, dtype=torch.int64, device=q.device)
    order = shuffled(n, key).expand(len(q), -1)
    order = order.gather(1, (order >= count[:, None]).to(torch.int8).argsort(dim=1, stable=True))[:, :most]
    in_sample = torch.arange(most, device=q.device) < u[:, None]
    scores = q @ take(k, order, real=in_sample).mT
    beyond = ~in_sample[:, None, None]
    M = scores.masked_fill(beyond, -torch.inf).amax(-1)
    M = M - scores.masked_fill(beyond, 0).sum(-1) / u.clamp(min=1)[:, None, None]
    M = M.masked_fill(torch.arange(n, device=q.device) >= count[:, None, None], -torch.inf)
    return M.sort(dim=-1, descending=True, stable=True).indices[..., :most]


def mean(v: Values, count: Int[Tensor, " b"], *, causal: bool) -> Values:
    """What uniform weights give each query."""
    if causal:
        return v.cumsum(2) / torch.arange(1, v.shape[2] + 1, device=v.device)[:, None]
    return (v.sum(2, keepdim=True) / count.clamp(min=1)[:, None, None, None]).expand(v.shape)


def shuffled(n: int, key: Int[Tensor, " two"]) -> Int[Tensor, " n"]:
    """The places of n tokens in a random order, which that of fewer tokens is part of."""
    return scramble(torch.arange(n, device=key.device), key).argsort(dim=0, stable=True)


def take_each(x: Float[Tensor, "b h n d"], places: Int[Tensor, "b h u"]) -> Float[Tensor, "b h u d"]:
    """`x` at other places in each head."""
    return x.gather(2, places[..., None].expand(*places.shape, x.shape[-1]))


def scramble(x: Int[Tensor, " n"], key: Int[Tensor, " two"]) -> Int[Tensor, " n"]:
    """Numbers below 2^32 that look drawn, one for each number and key.

    An integer hash of three rounds of shift and multiply, all products below 2^63.
    """
    mask = 0xFFFFFFFF
    for salt in (key[0], key[1], 0):
        x = x ^ salt
        x = ((x >> 16) ^ x) * 0x45D9F3B & mask
        x = ((x >> 16) ^ x) * 0x45D9F3B & mask
    return (x >> 16) ^ x
