"""cosFormer: rectified dot products, and a preference for what is near.

    out_i = sum_j a_ij v_j / sum_j a_ij,    a_ij = (relu(q_i) . relu(k_j)) cos(pi/2 (i - j) / M)

With angles t_i = pi/2 i / M the cosine of a difference is cos t_i cos t_j + sin t_i sin t_j, so that the
weight is a dot product of features twice as wide, all of them non-negative:

    phi_i(x) = [relu(x) cos t_i, relu(x) sin t_i],    a_ij = phi_i(q_i) . phi_j(k_j)

i and j count the real tokens of a row. M must not be less than the length: in the bidirectional form it is
the row's own length, and in the causal one `Dims.max_len`, for the length is not known until the last token.

Qin et al.: cosFormer: Rethinking Softmax in Attention. ICLR 2022, arXiv:2202.08791, on cos-based
re-weighting. Departs from the authors' code in M, which there is the length of the padded batch in both
forms; in its denominator, which is clamped there; and in having no cross-attention, where M is the greater
of two lengths: a mask of keys says nothing of the places of queries.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, State, Traits, Valid, Values
from subquad.mechanisms.kernel import CHUNK
from subquad.ops.linear_attention import KernelInputs, linear_attention
from subquad.ops.linear_attention.sharing import of_others
from subquad.ops.linear_attention.sums import Sums, causal_average, collect, divide, read_sums
from subquad.ops.shared.allocation import concat_into
from subquad.ops.shared.precision import wide
from subquad.ops.shared.scan import block_tokens, blocks, recompute, scan
from subquad.ops.shared.waiting import require_at_most
from subquad.shards import Shards

Angles = Float[Tensor, "#b 1 t 1"]


class CosFormerState(NamedTuple):
    """The sums over the keys so far, and how many there were."""

    S: Float[Tensor, "b h f e"]
    z: Float[Tensor, "b h f 1"]
    count: Int[Tensor, " b"]


class CosFormer(Mechanism):
    """Weights fall with distance as a quarter of a cosine, over the whole length. It has no options.

    Approximates nothing: it keeps two properties of softmax attention, weights that are not negative and
    that concentrate on near tokens, and is equal to it for no options. The causal form asks for
    `Dims.max_len`, and refuses a sequence or a stream of more real tokens than that.

    Not for streams without an end, since the reach of the cosine is fixed beforehand, nor for keys that must
    be found wherever they stand. Where no feature of a query and of the keys it sees is above zero at once,
    its weights are all zero, and so is its output.
    """

    traits = Traits(
        name="cosformer",
        paper="arXiv:2202.08791",
        family="kernel",
        bidirectional=True,
        causal="strict",
        state="bounded",
        exchange="states",
    )

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        super().__init__(dims, causal=causal)
        if causal and dims.max_len is None:
            raise ValueError("'cosformer' weighs by distance over the greatest length: set Dims.max_len")

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        """Row by row, without its padding."""
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            own_q, own_k, own_v = q[row][:, real], k[row][:, real], v[row][:, real]
            n = own_q.shape[1]
            M = self.dims.max_len if self.causal and self.dims.max_len is not None else n
            i = torch.arange(n, dtype=q.dtype, device=q.device)
            weights = own_q.relu() @ own_k.relu().mT * (math.pi / 2 * (i[:, None] - i) / M).cos()
            if self.causal:
                weights = weights.tril()
            out[row, :, real] = divide((weights @ own_v)[None], weights.sum(-1, keepdim=True)[None])[0]
        return out

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        if self.causal and q.is_cpu and not torch.compiler.is_compiling():
            return self._stream(q, k, v, valid=valid, state=None)[0]
        if self.causal:
            return self._at_once(q, k, v, valid=valid)
        M = counted(valid, like=q).clamp(min=1)
        angles = math.pi / 2 * places(valid, like=q) / M[:, None, None, None]
        return read_in_blocks(q, angles, v, collect_in_blocks(k, angles, v, valid=valid))

    def sharded(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None, shards: Shards
    ) -> Outputs:
        place = places(valid, like=q) + shards.before[:, None, None, None]
        if self.causal:
            assert self.dims.max_len is not None
            angles = math.pi / 2 / self.dims.max_len * place
        else:
            angles = math.pi / 2 * place / shards.total.clamp(min=1)[:, None, None, None]
        own = collect_in_blocks(k, angles, v, valid=valid)
        sums = of_others(own, shards=shards, causal=self.causal)
        if not self.causal:
            return read_in_blocks(q, angles, v, sums)
        state = CosFormerState(sums.S, sums.z, shards.before)
        return self._stream(q, k, v, valid=valid, state=state)[0]

    def _at_once(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None) -> Outputs:
        """The causal form as one operator: in graphs one node for all lengths, elsewhere few launches."""
        assert self.dims.max_len is not None
        self._require_room(q, valid, None)
        q, k, v = wide(q, k, v)
        angles = math.pi / 2 / self.dims.max_len * places(valid, like=q)
        inputs = KernelInputs(features(q, angles), features(k, angles))
        return linear_attention(inputs, v, valid=valid, causal=True)

    def step(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        valid: Valid | None = None,
        state: CosFormerState | None = None,
    ) -> tuple[Outputs, State]:
        return self._stream(q, k, v, valid=valid, state=state)

    def _stream(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: CosFormerState | None
    ) -> tuple[Outputs, CosFormerState]:
        self._require_room(q, valid, state)
        chunk = CHUNK if q.is_cpu else block_tokens(q)
        return scan(self._chunk, q, k, v, valid=valid, state=state, chunk=chunk)

    def _chunk(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: CosFormerState | None
    ) -> tuple[Outputs, CosFormerState]:
        assert self.dims.max_len is not None
        q, k, v = wide(q, k, v)
        place = places(valid, like=q)
        count = counted(valid, like=q)
        if state is not None:
            place, count = place + state.count[:, None, None, None], count + state.count
        angles = math.pi / 2 / self.dims.max_len * place
        out, sums = causal_average(
            features(q, angles),
            features(k, angles),
            v,
            valid=valid,
            state=None if state is None else Sums(state.S, state.z),
        )
        return out, CosFormerState(*sums, count)

    def _require_room(self, q: Queries, valid: Valid | None, state: CosFormerState | None) -> None:
        """Refuse more real tokens than `max_len`; looks into tensors only where it must."""
        assert self.dims.max_len is not None
        if state is None and q.shape[2] <= self.dims.max_len:
            return
        count = counted(valid, like=q)
        if state is not None:
            count = count + state.count
        most = self.dims.max_len
        otherwise = f"'cosformer' was built for {most} tokens, not {{}}: set a greater Dims.max_len"
        require_at_most(most, count, otherwise)


def counted(valid: Valid | None, *, like: Queries) -> Int[Tensor, " b"]:
    """The real tokens of each row."""
    batch, _, length, _ = like.shape
    if valid is None:
        return torch.full((batch,), length, device=like.device)
    return valid.sum(1)


def places(valid: Valid | None, *, like: Queries) -> Angles:
    """How many real tokens of its row stand before each token."""
    batch, _, length, _ = like.shape
    dtype = torch.promote_types(like.dtype, torch.float32)
    if valid is None:
        return torch.arange(length, dtype=dtype, device=like.device).expand(batch, 1, -1)[..., None]
    return (valid.cumsum(1) - 1).clamp(min=0).to(dtype)[:, None, :, None]


def features(x: Queries, angles: Angles) -> Float[Tensor, "b h t f"]:
    """phi, for tokens at `angles`."""
    x = x.relu()
    return torch.cat([x * angles.cos(), x * angles.sin()], -1)


def collect_in_blocks(k: Keys, angles: Angles, v: Values, *, valid: Valid | None) -> Sums:
    sums = None
    for part, seen in blocks(k, angles, v, valid=valid):
        sums = recompute(_collect, *part, seen, sums)
    assert sums is not None
    return sums


def read_in_blocks(q: Queries, angles: Angles, v: Values, sums: Sums) -> Outputs:
    parts = (recompute(_read, *part, sums) for part, _ in blocks(q, angles))
    return concat_into(parts, v, *q.shape[:3], v.shape[3], dim=2)


def _collect(k: Keys, angles: Angles, v: Values, valid: Valid | None, sums: Sums | None) -> Sums:
    k, v = wide(k, v)
    return collect(features(k, angles), v, valid=valid, sums=sums)


def _read(q: Queries, angles: Angles, sums: Sums) -> Outputs:
    (q,) = wide(q)
    return read_sums(features(q, angles), sums)
