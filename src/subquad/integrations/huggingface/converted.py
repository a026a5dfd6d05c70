"""A mechanism in the place of a pretrained layer's softmax: it gets that layer's queries, keys and values."""

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, State, Valid, Values
from subquad.nn.attention_layer import AttentionLayer
from subquad.registry import build
from subquad.stand_in import require_stand_in

Merged = Float[Tensor, "b t h e"]
SharedKeys = Float[Tensor, "b g s d"]  # g divides h: several heads may share one
SharedValues = Float[Tensor, "b g s e"]


class ConvertedAttention(AttentionLayer):
    """What `convert` puts beneath a pretrained layer, as its submodule `subquad`.

    Softmax attention on what the mechanism gets, with its usual scores q . k / sqrt(d), is that of the
    pretrained layer: queries are multiplied where that scales its scores otherwise, and keys and values that
    several heads share stand once for each of them.

    attention: the mechanism's name.
    heads: of queries.
    head_dim: the width of each.
    causal: whether a token sees none of those after it.
    max_len: the longest sequence, for mechanisms with weights per position.
    layer: its place among the converted ones, from 0.
    options: the mechanism's own.

    Raises `ValueError` for a mechanism that cannot stand in for softmax attention (`subquad.stand_in`).
    """

    def __init__(
        self,
        attention: str,
        *,
        heads: int,
        head_dim: int,
        causal: bool,
        max_len: int | None = None,
        layer: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.attention, self.options = attention, options
        self.dims = Dims(heads=heads, head_dim=head_dim, max_len=max_len, layer=layer)
        self.causal = causal
        self.mechanism = self.build_mechanism()
        require_stand_in(self.mechanism, self.dims, causal=causal)

    def build_mechanism(self) -> Mechanism:
        return build(self.attention, self.dims, causal=self.causal, **self.options)

    def forward(
        self, q: Queries, k: SharedKeys, v: SharedValues, *, valid: Valid | None, scaling: float | None
    ) -> Merged:
        """Attention over a whole sequence, or from one to another. Keys and values may have fewer heads.

        valid: `(b s)`, True at real keys. None: all are.
        scaling: what q . k is multiplied by. None: 1/sqrt(d).
        """
        return heads_last(self.mechanism(*self._as_softmax(q, k, v, scaling), valid=valid))

    def step(
        self,
        q: Queries,
        k: SharedKeys,
        v: SharedValues,
        *,
        valid: Valid | None,
        scaling: float | None,
        state: State | None,
    ) -> tuple[Merged, State]:
        """The same for the next tokens of a stream, and the state after them; before the first it is None."""
        inputs = self._as_softmax(q, k, v, scaling)
        out, state = self.mechanism.step(*inputs, valid=valid, state=state)
        return heads_last(out), state

    def extra_repr(self) -> str:
        return f"{self.attention!r}, causal={self.causal}"

    def _as_softmax(
        self, q: Queries, k: SharedKeys, v: SharedValues, scaling: float | None
    ) -> tuple[Queries, Keys, Values]:
        if scaling is not None and not math.isclose(scaling, q.shape[-1] ** -0.5, rel_tol=1e-6):
            q = q * (scaling * q.shape[-1] ** 0.5)
        if (sharing := q.shape[1] // k.shape[1]) > 1:
            k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
        return q, k, v


def heads_last(out: Outputs) -> Merged:
    return out.transpose(1, 2).contiguous()
