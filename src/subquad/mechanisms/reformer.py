"""Reformer: attention among tokens that a locality-sensitive hash puts into the same bucket.

    out_i = sum_{j in P_i} a_ij v_j,    a_ij = softmax_{j in P_i}(q_i . k_j),    k_j = q_j / |q_j|

Queries serve as keys, so that what hashes alike attends alike. Keys have length one, and scores, which lie
between -|q_i| and |q_i|, are not divided by sqrt(d). A round of hashing rotates tokens at random, and a
bucket is the coordinate, of either sign, that comes out largest:

    h(x) = argmax [x R; -x R],    R ~ N(0, 1), d x buckets / 2

Tokens are sorted by (bucket, position) and cut into chunks of c. In round r, P_i^r holds those of i's
bucket in its chunk and in the chunk before. Similar tokens miss each other in one round, hardly in many,
and P_i is the union of them: a pair found in N_ij rounds has log N_ij taken off its score in each, and the
rounds add up by their log-sum-exp; here it counts in the first of them alone, and the sum is the same. A
token sees itself only where it sees nothing else, since its key is all too like its query. With about n / c
buckets a round costs O(n c d), besides the sorting.

Kitaev, Kaiser, Levskaya: Reformer: The Efficient Transformer. ICLR 2020, arXiv:2001.04451, section 2 and
appendix A. How it is laid out here, and where it departs:

- The number of buckets is n / c, rounded up to an even number, for a row's own n real tokens; padding is
  sorted behind them. Rows of at most c tokens have one bucket, and attend to all of it.
- A hash over n / c coordinates costs n^2 d / c. Beyond 64 buckets it is the product of several hashes, as in
  the authors' code, and hashing costs O(n log n).
- The first chunk has nothing before it. In the authors' code it sees the last chunk of another round.
- Rotations are drawn once, from `seed` and the layer, and not at every call: the same input always comes out
  the same. `redraw` draws others. All heads share them.
- Which tokens share a chunk depends on all of the sequence, so only values are causal.
- Scores are those of the authors' code (trax) and of Hugging Face's. reformer-pytorch divides them by sqrt(d)
  besides, and starts near a mean of values.
- Left out are the reversible layers and the feed-forward layers in chunks (section 3), on which the paper's
  savings of memory rest as much: they are the network's matter.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.bounds import Count
from subquad.inputs import zero_padding
from subquad.mechanism import Dims, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.bucket_attention import bucket_attention
from subquad.ops.bucket_attention.sorting import Buckets
from subquad.ops.hashing import WIDEST, hash_sizes, hashed
from subquad.ops.shared.generators import seeded
from subquad.ops.shared.precision import narrowed, wide


class ReformerInputs(NamedTuple):
    q: Queries  # and keys
    v: Values


HASHES = 4  # in a product of hashes, enough for sixteen million chunks


class Reformer(Mechanism):
    """Softmax attention with shared queries and keys, over the tokens that LSH finds.

    bucket: c, tokens of a chunk and of an average bucket.
    rounds: of hashing.
    strays: whether tokens of other buckets that a chunk holds are attended to, as in most implementations.
    duplicates: whether the correction of pairs found in several rounds is left out: they then weigh more,
        which saves some time.
    seed: from which rotations are drawn, with the layer's number.

    Approximates softmax attention whose queries are its keys, by the few large weights of each query. It
    never equals softmax attention of queries and keys apart, but equals its own full form, over all keys,
    where all tokens stand in one bucket and the chunks reach them all: rows of at most `bucket` tokens
    always do.

    Not for cross-attention, streaming, or language models: causal outputs do not see later values, but later
    tokens change which earlier ones are looked at. Not for sequences of a few hundred tokens, where rounds of
    sorting cost more than full attention.
    """

    R: Float[Tensor, "levels r d f"]

    inputs = ReformerInputs
    zeros_padding = False  # of queries it must, which are keys, too
    traits = Traits(
        name="reformer",
        paper="arXiv:2001.04451",
        family="content",
        bidirectional=True,
        causal="values",
        normalised=True,
        tiny={"bucket": 3, "rounds": 2},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        bucket: Count = 64,
        rounds: Count = 8,
        strays: bool = False,
        duplicates: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(dims, causal=causal)
        self.bucket, self.rounds = bucket, rounds
        self.strays, self.duplicates = strays, duplicates
        self.register_buffer("R", torch.empty(HASHES, rounds, dims.head_dim, WIDEST // 2))
        self.redraw(generator=seeded(seed, dims.layer))

    def redraw(self, *, generator: torch.Generator) -> None:
        self.R.copy_(torch.randn(self.R.shape, dtype=torch.float64, generator=generator))

    def definition(self, q: Queries, v: Values, *, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding, as a softmax over the pairs that are in P."""
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            x, y = q[row][:, real], v[row][:, real]
            times = torch.stack([self._pairs(x, round) for round in range(self.rounds)]).sum(0)
            if self.causal:
                times = times.tril()
            self_only = torch.eye(x.shape[1], dtype=torch.int64, device=q.device).expand_as(times)
            others = times - times * self_only
            times = torch.where(others.sum(-1, keepdim=True) > 0, others, self_only)
            scores = x @ F.normalize(x, dim=-1).mT
            if self.duplicates:
                scores = scores + times.clamp(min=1).log()
            out[row][:, real] = scores.masked_fill(times == 0, -torch.inf).softmax(-1) @ y
        return out

    def _pairs(self, x: Float[Tensor, "h n d"], round: int) -> Bool[Tensor, "h n n"]:
        """Which tokens one round lets a token see, itself included."""
        n = x.shape[1]
        bucket = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        for level, size in reversed(list(enumerate(hash_sizes(n, self.bucket)))):
            if size > 1:
                rotated = x @ self.R[level, round, :, : size // 2].to(x.dtype)
                largest = torch.stack([rotated, -rotated], -1).flatten(-2).argmax(-1)  # first of equal ones
                bucket = size * bucket + largest // 2 + size // 2 * (largest % 2)
        place = (bucket * n + torch.arange(n, device=x.device)).argsort(-1).argsort(-1)
        back = (place // self.bucket)[:, :, None] - (place // self.bucket)[:, None]
        near = (back == 0) | (back == 1)
        return near if self.strays else near & (bucket[:, :, None] == bucket[:, None])

    def forward(self, q: Queries, v: Values, *, valid: Valid | None = None) -> Outputs:
        dtype = q.dtype
        _, q, v = wide(*zero_padding(valid, q, q, v))
        real = torch.ones_like(q[:, 0, :, 0], dtype=torch.bool) if valid is None else valid
        bucket = self._hash(q.detach(), None if valid is None else valid.sum(1))
        bucket = bucket.masked_fill(~real[:, None, None], BEHIND)
        rounds = Buckets.of(bucket, size=self.bucket)
        keys = F.normalize(q, dim=-1) * q.shape[-1] ** 0.5  # by which scores are divided
        return bucket_attention(
            *narrowed(dtype, q, keys, v),
            order=rounds.order,
            labels=self._labels(bucket, rounds, real),
            size=rounds.size,
            causal=self.causal,
            self_only_if_alone=True,
            count_duplicates=self.duplicates,
        )

    def _hash(self, x: Queries, count: Int[Tensor, " b"] | None) -> Int[Tensor, "b h r n"]:
        """The bucket of each token in each round, by the number of tokens in its row (None: all)."""
        return hashed(x, self.R, count, bucket=self.bucket)

    def _labels(
        self, bucket: Int[Tensor, "b h r n"], buckets: Buckets, real: Bool[Tensor, "b n"]
    ) -> Int[Tensor, "b h r n"]:
        """Numbers of which the difference is 0 or 1 just where the first token may see the second.

        In the sorted order chunks ascend with buckets, so that another bucket is at least two away.
        """
        chunk = buckets.place // self.bucket
        mark = chunk if self.strays else 2 * bucket + chunk
        return mark.masked_fill(~real[:, None, None], PADDING)


BEHIND = torch.iinfo(torch.int32).max // 4  # the bucket of padding, sorted after all others
PADDING = -4  # a mark that is near to none but itself
