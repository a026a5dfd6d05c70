"""Routing Transformer: attention among tokens that k-means puts into the same cluster.

    q^ = layer norm of q,  k^ = layer norm of k,  both without weights, and so of length sqrt(d)
    out_i = sum_{j in P_i} softmax_{j in P_i}(q^_i . k^_j / sqrt(d)) v_j

Every head has c centroids mu on the unit sphere. Bidirectional: each centroid takes the w queries and the w
keys nearest to it, w = n / c, and those queries attend to those keys. A query that several centroids took
gets the mean of what they give, and one that none took gets zeros. Causal: a token goes to the centroid
nearest to its query, and attends to the last w tokens that went there, itself the last of them. What a
cluster holds is decided in the order of time, so that nothing depends on the future, and a stream keeps w
tokens for each cluster. Where w = n / c and c is near sqrt(n) the work is O(n^1.5 d).

While training, centroids follow the tokens that are nearest to them, by moving averages over all ranks:

    mu <- decay mu + (1 - decay) / 2 (mean of its queries + mean of its keys)

Roy, Saffar, Vaswani, Grangier: Efficient Content-Based Sparse Attention with Routing Transformers. TACL 2021,
arXiv:2003.05997, section 4 and algorithm 1. How it is laid out here, and where it departs:

- w is that of a row's own real tokens, and at most `window`, so that work grows linearly once it is reached.
- The paper's causal form, too, takes a centroid's nearest w of the whole sequence, and which these are
  depends on the future. As there, keys go where the queries of their tokens go.
- Nearest is by angle: a centroid's length, which averaging shrinks, plays no part. The averages are of
  means and not of sums, whose weight would depend on the size of a batch. A cluster that got no tokens
  stays.
- `forward` and `step` only gather, in training mode; `update` moves the centroids, after a step of the
  optimiser.
- Half of the paper's heads attend locally; that is for a layer that mixes two mechanisms.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from subquad.bounds import Count, PositiveOrZero, Share
from subquad.inputs import zero_padding
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.attention import attention
from subquad.ops.bucket_attention import bucket_attention
from subquad.ops.bucket_attention.sorting import Buckets, reorder
from subquad.ops.shared.generators import seeded
from subquad.ops.shared.graphed import graphed
from subquad.ops.shared.precision import narrowed, wide
from subquad.ops.shared.scan import scan
from subquad.ops.shared.topk import stable_topk
from subquad.ops.shared.transforms import lasting, passing

STREAM_CHUNK = 32  # tokens of a stream at a time

Cosines = Float[Tensor, "b h n c"]
Real = Bool[Tensor, "b n"]


class RoutingState(NamedTuple):
    """The last tokens of each cluster; the token that is number g of its cluster stands at g mod w."""

    k: Float[Tensor, "b h c w d"]
    v: Float[Tensor, "b h c w e"]
    count: Int[Tensor, "b h c"]  # tokens that each cluster has got so far


class RoutingAttention(Mechanism):
    """Softmax attention within clusters of queries and keys that are learnt by k-means.

    clusters: c, best near the square root of the length.
    window: w, the most tokens of a cluster; for full use clusters * window should be the length.
    decay: of the centroids' moving averages, from 0 to 1; the paper's is 0.999.
    commitment: `penalty()` is this times the mean squared distance of queries and keys from their centroids.
    seed: from which centroids are drawn, with the layer's number.

    Approximates softmax attention of queries and keys of one length, by the large weights of each query. It
    equals that with one cluster whose window holds the sequence.

    Not for cross-attention. Not for bidirectional models in which every token must hear something: a query
    may be in no cluster, and then gets nothing. Not for training without `update`, for the centroids then
    stay as they were drawn.
    """

    mu: Float[Tensor, "h c d"]

    zeros_padding = False  # of queries it must, which are routed as keys are
    traits = Traits(
        name="routing",
        paper="arXiv:2003.05997",
        family="content",
        bidirectional=True,
        causal="strict",
        state="bounded",
        cost=1.5,
        tiny={"clusters": 3, "window": 7},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        clusters: Count = 16,
        window: Count = 256,
        decay: Share = 0.999,
        commitment: PositiveOrZero = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__(dims, causal=causal)
        self.clusters, self.window = clusters, window
        self.decay, self.commitment = decay, commitment
        self.register_buffer("mu", torch.empty(dims.heads, clusters, dims.head_dim))
        self.redraw(generator=seeded(seed, dims.layer))
        self._gathered = torch.zeros(dims.heads, 2, clusters, dims.head_dim + 1, device="cpu")  # sums, count
        self._distance = torch.zeros((), device="cpu")

    def redraw(self, *, generator: torch.Generator) -> None:
        drawn = torch.randn(self.mu.shape, dtype=torch.float64, generator=generator)
        self.mu.copy_(F.normalize(drawn, dim=-1))

    def penalty(self) -> Float[Tensor, ""]:
        return self.commitment * lasting(self._distance)

    @torch.no_grad()
    def update(self) -> None:
        """Move the centroids towards what was gathered in training since the last update.

        Where ranks train together, each must call it at the same steps, and all have the same centroids
        after.
        """
        gathered = self._gathered.to(self.mu.device, copy=True)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(gathered)
        sums, count = gathered[..., :-1], gathered[..., -1:]
        means = torch.where(count > 0, sums / count.clamp(min=1), self.mu[:, None].to(sums))
        self.mu.mul_(self.decay).add_((1 - self.decay) * means.mean(1))
        self._gathered.zero_()

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding, head by head."""
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = torch.ones_like(q[row, 0, :, 0], dtype=torch.bool) if valid is None else valid[row]
            for head in range(q.shape[1]):
                x, y, z = (x[row, head][real] for x in (q, k, v))
                define = self._define_causal if self.causal else self._define_bidirectional
                out[row, head, real] = define(x, y, z, self.mu[head].to(q.dtype))
        return out

    def _define_bidirectional(
        self,
        q: Float[Tensor, "n d"],
        k: Float[Tensor, "n d"],
        v: Float[Tensor, "n e"],
        mu: Float[Tensor, "c d"],
    ) -> Float[Tensor, "n e"]:
        q, k = (F.layer_norm(x, x.shape[-1:]) for x in (q, k))
        w = min(self.window, -(-len(q) // self.clusters))
        total, times = torch.zeros_like(v), torch.zeros_like(v[:, :1])
        for centroid in mu:
            near = ((x * centroid).sum(-1) for x in (q, k))  # `mv` tells equal tokens apart by rounding
            queries, keys = (x.argsort(descending=True, stable=True)[:w] for x in near)
            outputs = (q[queries] @ k[keys].mT / q.shape[-1] ** 0.5).softmax(-1) @ v[keys]
            total = total.index_add(0, queries, outputs)
            times = times.index_add(0, queries, torch.ones_like(outputs[:, :1]))
        return total / times.clamp(min=1)

    def _define_causal(
        self,
        q: Float[Tensor, "n d"],
        k: Float[Tensor, "n d"],
        v: Float[Tensor, "n e"],
        mu: Float[Tensor, "c d"],
    ) -> Float[Tensor, "n e"]:
        q, k = (F.layer_norm(x, x.shape[-1:]) for x in (q, k))
        cluster = (q @ (mu / mu.norm(dim=-1, keepdim=True)).mT).argmax(-1)
        out = []
        for i in range(len(q)):
            seen = (cluster[: i + 1] == cluster[i]).nonzero()[-self.window :, 0]
            out.append((k[seen] @ q[i] / q.shape[-1] ** 0.5).softmax(0) @ v[seen])
        return torch.stack(out) if out else v

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        inputs, real = self._route(q, k, v, valid)
        if self.causal:
            *tokens, near = inputs
            q, k, v = narrowed(q.dtype, *tokens)
            return self._within_clusters(q, k, v, near, real)
        return self._by_centroid(*inputs, valid)

    def step(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None, state: RoutingState | None = None
    ) -> tuple[Outputs, RoutingState]:
        inputs, real = self._route(q, k, v, valid)
        before = self._initial_state(*inputs[1:3]) if state is None else state
        chunk = min(STREAM_CHUNK, self.window)  # no more, or two tokens would want one place of a ring
        return scan(self._chunk, *inputs, valid=real, state=before, chunk=chunk)

    def _route(
        self, q: Queries, k: Keys, v: Values, valid: Valid | None
    ) -> tuple[tuple[Queries, Keys, Values, Cosines], Real]:
        """q^, k^, v and how near each query is to each centroid; in training mode, what there is to learn."""
        _, q, k, v = wide(*zero_padding(valid, q, q, k, v))
        real = torch.ones_like(q[:, 0, :, 0], dtype=torch.bool) if valid is None else valid
        q, k = (F.layer_norm(x, x.shape[-1:]) for x in (q, k))
        near = self._cosines(q)
        if self.training:
            self._distance, gathered = self._learn(q, k, near, real)
            if torch.compiler.is_dynamo_compiling() or not passing():
                self._gather(gathered)
        return (q, k, v, near), real

    def _gather(self, x: Float[Tensor, "h two c d1"]) -> None:
        """Add to what there is to learn: in place, so that a CUDA graph does it each time that it runs."""
        if self._gathered.device != x.device or self._gathered.dtype != x.dtype:
            with torch.inference_mode(False):  # tensors made in inference could not be added to in training
                self._gathered = self._gathered.to(x.device, x.dtype)
        self._gathered.add_(x)

    def _cosines(self, x: Queries) -> Cosines:
        """Of each token, normalised, with each centroid."""
        return x @ F.normalize(self.mu.to(x.dtype), dim=-1).mT / x.shape[-1] ** 0.5

    def _learn(
        self, q: Queries, k: Keys, near_q: Cosines, real: Real
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "h two c d1"]]:
        """The mean squared distance from the nearest centroid, and each centroid's tokens: sum and count."""
        squares, sums = q.new_zeros(()), []
        for x, near in ((q, near_q), (k, self._cosines(k))):
            x = x / x.shape[-1] ** 0.5
            cosine, nearest = near.max(-1)
            distance = x.square().sum(-1) - 2 * cosine + 1
            squares = squares + distance.masked_fill(~real[:, None], 0).sum()
            members = self._joins(nearest, real).to(x.dtype)
            ones = torch.cat([x.detach(), torch.ones_like(x[..., :1])], -1)
            sums.append(members.transpose(0, 1).flatten(1, 2).mT @ ones.transpose(0, 1).flatten(1, 2))
        return squares / (2 * q.shape[1] * real.sum()).clamp(min=1), torch.stack(sums, 1)

    def _joins(self, cluster: Int[Tensor, "b h n"], real: Real) -> Bool[Tensor, "b h n c"]:
        """Which cluster each real token goes to."""
        members = cluster[..., None] == torch.arange(self.clusters, device=cluster.device)
        return members & real[:, None, :, None]

    def _by_centroid(self, q: Queries, k: Keys, v: Values, near: Cosines, real: Real | None) -> Outputs:
        """The bidirectional form: each centroid's nearest queries attend to its nearest keys."""
        nearness = near.detach(), self._cosines(k.detach())
        return by_centroid(q, k, v, *nearness, real, self.window)

    def _within_clusters(self, q: Queries, k: Keys, v: Values, near: Cosines, real: Real) -> Outputs:
        """The causal form: sorted by cluster, then by time, w tokens back are at most one chunk back."""
        cluster = near.argmax(-1).masked_fill(~real[:, None], self.clusters)
        buckets = Buckets.of(cluster[:, :, None], size=self.window)
        labels = 2 * cluster[:, :, None] + buckets.place // buckets.size
        return bucket_attention(
            q, k, v, order=buckets.order, labels=labels, size=buckets.size, last_n_only=True
        )

    def _initial_state(self, k: Keys, v: Values) -> RoutingState:
        """What is remembered before the first token."""
        rings = (*k.shape[:2], self.clusters, self.window)
        count = torch.zeros(rings[:3], dtype=torch.int64, device=k.device)
        return RoutingState(k.new_zeros(*rings, k.shape[-1]), v.new_zeros(*rings, v.shape[-1]), count)

    def _chunk(
        self, q: Queries, k: Keys, v: Values, near: Cosines, *, valid: Real, state: RoutingState
    ) -> tuple[Outputs, RoutingState]:
        """At most w tokens: each attends to what its cluster held and to what has joined it since."""
        w, real, cluster = self.window, valid, near.argmax(-1)
        joins = self._joins(cluster, real).cumsum(2)
        number = (state.count[:, :, None] + joins).gather(-1, cluster[..., None])[..., 0] - 1
        newest = state.count.gather(-1, cluster)[..., None] - 1  # the last number in the ring
        slot = torch.arange(w, device=q.device)
        in_slot = newest - (newest - slot) % w
        old_k, old_v = (reorder(x, cluster) for x in (state.k, state.v))  # b h n w _
        old = (old_k @ q[..., None])[..., 0].masked_fill(
            (in_slot < 0) | (in_slot <= number[..., None] - w), -torch.inf
        )
        same_cluster = (cluster[..., None] == cluster[..., None, :]) & real[:, None, None]
        same_cluster = same_cluster.tril() | torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
        new = (q @ k.mT).masked_fill(~same_cluster, -torch.inf)
        weights = (torch.cat([old, new], -1) / q.shape[-1] ** 0.5).softmax(-1)
        out = (weights[..., None, :w] @ old_v)[..., 0, :] + weights[..., w:] @ v
        place = (cluster * w + number % w).masked_fill(~real[:, None], self.clusters * w)
        count = state.count + joins[:, :, -1:].sum(2)
        return out, RoutingState(put(state.k, k, place), put(state.v, v, place), count)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_distance": torch.zeros(())}  # its graph cannot be copied


def put(
    ring: Float[Tensor, "b h c w e"], x: Float[Tensor, "b h n e"], place: Int[Tensor, "b h n"]
) -> Float[Tensor, "b h c w e"]:
    """The rings with `x` at its places, counted through all of them; at the one beyond the last, nothing."""
    slots = torch.cat([ring.flatten(2, 3), torch.zeros_like(ring[:, :, 0, :1])], 2)
    slots = slots.scatter(2, place[..., None].expand(x.shape), x)
    return slots[:, :, :-1].unflatten(2, ring.shape[2:4])


@graphed(
    "attention_by_centroid",
    "Tensor q, Tensor k, Tensor v, Tensor near_q, Tensor near_k, Tensor? real, int window",
    learnt=3,
    shape=lambda q, k, v, *_: v.shape,
)
def by_centroid(
    q: Queries, k: Keys, v: Values, near_q: Cosines, near_k: Cosines, real: Real | None, window: int
) -> Outputs:
    """Each centroid's nearest queries attend to its nearest keys, at most `window` of each."""
    (b, h, n, e), clusters = v.shape, near_q.shape[3]
    most = min(window, -(-n // clusters))
    nearness, taken = [near_q, near_k], None
    if real is not None:
        w = (-(-real.sum(1) // clusters)).clamp(max=window)
        taken = (torch.arange(most, device=q.device) < w[:, None])[:, None, None]  # b 1 1 w
        nearness = [x.masked_fill(~real[:, None, :, None], -torch.inf) for x in nearness]
    queries, keys = (stable_topk(x.mT.contiguous(), most) for x in nearness)
    q, k, values = (
        reorder(x, places.flatten(2)).unflatten(2, (clusters, most)).flatten(1, 2)
        for x, places in ((q, queries), (k, keys), (v, keys))
    )
    outputs = attention(q, k, values, seen=taken)
    times = torch.ones_like(outputs[..., :1])
    if taken is not None:
        outputs, times = (x.masked_fill(~taken.mT, 0) for x in (outputs, times))
    first = n * torch.arange(b * h, device=v.device)[:, None]
    place = (queries.flatten(0, 1).flatten(1) + first).flatten()
    total = v.new_zeros(b * h * n, e).index_add(0, place, outputs.flatten(0, 2))
    times = v.new_zeros(b * h * n, 1).index_add(0, place, times.flatten(0, 2))
    return (total / times.clamp(min=1)).view(b, h, n, e)
