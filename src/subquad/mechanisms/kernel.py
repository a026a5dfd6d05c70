"""Attention with a kernel that factorises: the core of linear attention, Performer and their relatives.

Softmax attention weighs key j for query i by exp(q_i . k_j). Put a dot product of features,
phi(q_i) . phi(k_j), in its place, and the query leaves the sum over keys:

    out_i = phi(q_i)^T S / phi(q_i)^T z,    S = sum_j phi(k_j) v_j^T,    z = sum_j phi(k_j)

Bidirectional: the sums run over all keys, and a sequence costs O(t f e) instead of O(t^2 d). Causal: they
run over j <= i, which makes (S, z) the state of a recurrent network that advances a chunk at a time.

Katharopoulos, Vyas, Pappas, Fleuret: Transformers are RNNs. ICML 2020, arXiv:2006.16236, sections 3.2
to 3.4. The sums themselves, and how they keep in range, are in `ops/linear_attention/sums.py`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.features.feature_map import ExponentialFeatureMap, FeatureMap
from subquad.inputs import zero_padding
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, State, Traits, Valid, Values
from subquad.ops.linear_attention import (
    KernelInputs,
    advance,
    fast_steps,
    linear_attention,
    masks_padding,
)
from subquad.ops.linear_attention.sharing import of_others
from subquad.ops.linear_attention.sums import (
    Exponentials,
    ShiftedSums,
    Sums,
    causal_exponential_average,
    collect,
    collect_exponentials,
    divide,
    read_exponentials,
    read_sums,
)
from subquad.ops.shared.allocation import concat_into
from subquad.ops.shared.precision import wide
from subquad.ops.shared.scan import block_tokens, blocks, recompute, scan
from subquad.shards import Shards

CHUNK = 64  # tokens; measured best on CPUs over 32, 128 and 256
MAX_SAVED = 2**23  # numbers; where queries have more, their features are recomputed in the backward pass

KERNEL = Traits(  # what every member claims; it gives its own name and paper with `dataclasses.replace`
    name="kernel",
    paper="arXiv:2006.16236",
    family="kernel",
    bidirectional=True,
    causal="strict",
    cross=True,
    state="bounded",
    normalised=True,
    exchange="states",
)


class KernelAttention(Mechanism):
    """Owns the sums; the feature map owns phi. A member of the family names its map and its options."""

    redraw_every: int = 0  # steps of training from one redrawing of random features to the next; 0: never

    penalises_weights = True

    def __init__(self, dims: Dims, *, causal: bool, features: FeatureMap) -> None:
        super().__init__(dims, causal=causal)
        self.features = features
        self.zeros_padding = not features.fused  # else what makes the features masks it

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        q, k, v = zero_padding(valid, q, k, v)
        weights = self.features(q) @ self.features(k).mT
        if self.causal:
            weights = weights.tril()
        if valid is not None:
            weights = weights.masked_fill(~valid[:, None, None, :], 0)
        return divide(weights @ v, weights.sum(-1, keepdim=True))

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        if self.causal and (self.features.signed or (not self.features.fused and fast_steps(q, k, v))):
            return self._stream(q, k, v, valid=valid, state=None)[0]
        return self.average(q, k, v, valid=valid, causal=self.causal)

    def sharded(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None, shards: Shards
    ) -> Outputs:
        if not self.zeros_padding:
            q, k, v = zero_padding(valid, q, k, v)
        own = None
        for part, seen in blocks(k, v, valid=valid):
            own = recompute(self._collect, *part, seen, own)
        assert own is not None
        sums = of_others(own, shards=shards, causal=self.causal)
        if self.causal:
            return self._stream(q, k, v, valid=valid, state=sums)[0]
        parts = (recompute(self._read, *part, sums) for part, _ in blocks(q))
        return concat_into(parts, v, *q.shape[:3], v.shape[3], dim=2)

    def average(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, causal: bool) -> Outputs:
        """The averages of values, for inputs with zeros at padding, which fused features need not have."""
        save_features = (
            torch.is_grad_enabled() and not self.features.signed and max(q.numel(), k.numel()) <= MAX_SAVED
        )
        if causal or save_features or self.features.fused:
            inputs, v = self._prepare(q, k, v, valid=valid, causal=causal)
            return linear_attention(inputs, v, valid=valid, causal=causal)
        sums = None
        for part, seen in blocks(k, v, valid=valid):
            sums = recompute(self._collect, *part, seen, sums)
        parts = (recompute(self._read, *part, sums) for part, _ in blocks(q))
        return concat_into(parts, v, *q.shape[:3], v.shape[3], dim=2)

    def step(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        valid: Valid | None = None,
        state: State | None = None,
        in_place: bool = False,
    ) -> tuple[Outputs, State]:
        return self._stream(q, k, v, valid=valid, state=state, in_place=in_place)

    def _stream(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        valid: Valid | None,
        state: State | None,
        in_place: bool = False,
    ) -> tuple[Outputs, State]:
        block = block_tokens(q)
        if q.shape[2] <= block or self.features.fused:
            return self._block(q, k, v, valid=valid, state=state, in_place=in_place)
        return scan(self._block, q, k, v, valid=valid, state=state, chunk=block)

    def _block(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        valid: Valid | None,
        state: State | None,
        in_place: bool = False,
    ) -> tuple[Outputs, State]:
        phi = self.features
        if isinstance(phi, ExponentialFeatureMap) and phi.signed:
            chunk = CHUNK if q.is_cpu else block_tokens(q)
            return scan(self._chunk, q, k, v, valid=valid, state=state, chunk=chunk)
        inputs, v = self._prepare(q, k, v, valid=valid, causal=True, form="step")
        return advance(inputs, v, valid=valid, before=state, in_place=in_place)

    def _prepare(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, causal: bool, form: str = "forward"
    ) -> tuple[KernelInputs, Values]:
        """As the operator takes them."""
        if not self.features.fused:
            q, k, v = wide(q, k, v)
            return self.features.prepare(q, k), v
        inputs = self.features.prepare(q, k)
        if valid is None or masks_padding(inputs, v, valid=valid, form=form, causal=causal):
            return inputs, v
        q, k, v = zero_padding(valid, q, k, v)
        return inputs._replace(q=q, k=k), v

    def _chunk(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: State | None
    ) -> tuple[Outputs, State]:
        """Of features whose sign log space cannot hold."""
        phi = self.features
        assert isinstance(phi, ExponentialFeatureMap)
        q, k, v = wide(q, k, v)
        return causal_exponential_average(queries(phi, q), keys(phi, k), v, valid=valid, state=state)

    def _collect(self, k: Keys, v: Values, valid: Valid | None, sums: State | None) -> Sums | ShiftedSums:
        k, v = wide(k, v)
        if isinstance(self.features, ExponentialFeatureMap):
            return collect_exponentials(keys(self.features, k), v, valid=valid, sums=sums)
        return collect(self.features(k), v, valid=valid, sums=sums)

    def _read(self, q: Queries, sums: State) -> Outputs:
        (q,) = wide(q)
        if isinstance(self.features, ExponentialFeatureMap):
            return read_exponentials(queries(self.features, q), sums)
        return read_sums(self.features(q), sums)

    def penalty(self) -> Float[Tensor, ""]:
        return self.features.penalty()

    def redraw(self, *, generator: torch.Generator) -> None:
        self.features.redraw(generator=generator)


def queries(phi: ExponentialFeatureMap, q: Queries) -> Exponentials:
    """Their features in log space."""
    return Exponentials(phi.log_queries(q), phi.amplitude(q))


def keys(phi: ExponentialFeatureMap, k: Keys) -> Exponentials:
    """Their features in log space."""
    return Exponentials(phi.log_keys(k), phi.amplitude(k))
