"""Linformer: keys and values projected along the sequence, from n tokens to k slots.

    out = softmax(Q (E K)^T / sqrt(d)) (F V),    E and F of k x n learnt numbers

The matrix of softmax attention is nearly of low rank, so k slots that do not grow with n can stand for all
tokens: the weights are n x k, and a sequence costs O(n k d).

Wang, Li, Khabsa, Fang, Ma: Linformer: Self-Attention with Linear Complexity. 2020, arXiv:2006.04768, section
4; E and F are drawn from N(0, 1/k), as in its Theorem 2. How it is laid out here, and where it departs:

- A row of n tokens, padding not counted, uses the first n columns of E and F, so any length up to
  `Dims.max_len` will do.
- The paper's other projections (section 4, "General projections") have windows of max_len / k tokens, rounded
  up, side by side; a row's last window is cut where its tokens end, and empty slots are not seen.
- One k for all: the paper's other k for each head or layer (section 4, "Nonuniform projected dimension") is
  left out.
- There is no causal form: each slot mixes all positions, later ones too, and a triangular mask over slots, as
  some implementations have it, lets the future through.
"""

from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.bounds import Count, one_of
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.attention import attention
from subquad.ops.shared.packing import Packing
from subquad.ops.shared.pooling import Windows
from subquad.ops.shared.precision import by_heads, wide

Sharing = Annotated[str, one_of("none", "heads", "key-value", "layers")]
Projection = Annotated[str, one_of("linear", "mean", "max", "convolution")]


Slots = Float[Tensor, "b h r c"]


class Linformer(Mechanism):
    """Attention to `rank` slots, each a learnt combination of all tokens.

    rank: k, the slots; at or above the longest sequence they save nothing.
    sharing: who has the same weights. "none": each head has an E and an F; "heads": all heads of a layer
        have one E and one F, the default of the authors' code; "key-value": and E = F; "layers": and all
        layers of a network have this one E (`tie`).
    projection: "linear", the paper's E and F; "mean" and "max", which pool windows of max_len / rank tokens
        and have no weights to share; "convolution", whose kernel is as wide as its stride and mixes
        components.

    Approximates softmax attention as far as its matrix has rank k, with E and F learnt for it. It equals
    softmax attention where rank = n and E = F = I, which is `projection="mean"` with a `rank` of at least
    `max_len`.

    Not for causal models, nor for sequences longer than any in training: the weights belong to positions, and
    those of positions never seen are untrained.
    """

    traits = Traits(
        name="linformer",
        paper="arXiv:2006.04768",
        family="low rank",
        bidirectional=True,
        cross=True,
        limit={"rank": 4096, "projection": "mean"},
        tiny={"rank": 8},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        rank: Count = 256,
        sharing: Sharing = "heads",
        projection: Projection = "linear",
    ) -> None:
        super().__init__(dims, causal=causal)
        if dims.max_len is None:
            raise ValueError("'linformer' has weights per position: set Dims.max_len")
        self.max_len, self.rank = dims.max_len, rank
        self.sharing, self.projection = sharing, projection
        self.window = -(-dims.max_len // rank)  # of all projections but the linear
        self.E = self._weights()
        self.F = self._weights() if sharing in ("none", "heads") else None  # None: E serves both

    def _weights(self) -> nn.Parameter | None:
        sets, d = self.dims.heads if self.sharing == "none" else 1, self.dims.head_dim
        if self.projection == "linear":
            return nn.Parameter(torch.randn(sets, self.rank, self.max_len) * self.rank**-0.5)
        if self.projection == "convolution":
            return nn.Parameter(torch.randn(sets, self.window, d, d) * (self.window * d) ** -0.5)
        return None

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        self._require_room(k)
        out = q.new_zeros(*q.shape[:3], v.shape[-1])
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            K, V = k[row][:, real], v[row][:, real]
            if K.shape[1]:
                scores = q[row] @ self._define(K, self.E).mT / q.shape[-1] ** 0.5
                out[row] = scores.softmax(-1) @ self._define(V, self.E if self.F is None else self.F)
        return out

    def _define(self, x: Float[Tensor, "h n c"], weights: nn.Parameter | None) -> Float[Tensor, "h r c"]:
        """The slots of one row without padding."""
        if weights is None:
            pool = torch.mean if self.projection == "mean" else torch.amax
            return torch.stack([pool(window, 1) for window in x.split(self.window, 1)], 1)
        if self.projection == "linear":
            return weights[..., : x.shape[1]] @ x
        slots = [
            torch.einsum("hwc,hwcd->hd", window, weights[:, : window.shape[1]].expand(len(x), -1, -1, -1))
            for window in x.split(self.window, 1)
        ]
        return torch.stack(slots, 1)

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        self._require_room(k)
        packing = Packing.of(valid, like=k)

        def attend(own: slice, q: Queries, k: Keys, v: Values) -> Outputs:
            E, F = (None if x is None else x[own] if len(x) > 1 else x for x in (self.E, self.F))
            slots, real = self._project(packing.pack(k), packing, E)
            mixed, _ = self._project(packing.pack(v), packing, E if F is None else F)
            mask = None if real is None else real[:, None, None, :]
            return attention(q, slots, mixed, seen=mask)

        return by_heads(attend, q, k, v)

    def _project(
        self, x: Float[Tensor, "b h s c"], packing: Packing, weights: Tensor | None
    ) -> tuple[Slots, Bool[Tensor, "b r"] | None]:
        """The slots of packed tokens, and which of them are real (None: all)."""
        if weights is not None and self.projection == "linear":
            if torch.compiler.is_compiling():  # a slice of all would be another graph than one of some
                used = weights.index_select(-1, torch.arange(x.shape[2], device=x.device))
            else:
                used = weights[..., : x.shape[2]]
            return used.to(x.dtype) @ x, None
        (tokens,) = wide(x)
        windows = Windows.of(tokens, packing.count, kernel=self.window, stride=self.window)
        if weights is not None:
            slots = windows.tokens.flatten(3) @ weights.flatten(1, 2).to(tokens.dtype)
        else:
            slots = windows.mean() if self.projection == "mean" else windows.max()
        return slots.to(x.dtype), windows.real

    def tie(self, first: Mechanism) -> None:
        if self.sharing == "layers" and isinstance(first, Linformer):
            self.E = first.E

    def _require_room(self, k: Keys) -> None:
        if k.shape[2] > self.max_len:
            raise ValueError(
                f"'linformer' was built for at most {self.max_len} tokens and got {k.shape[2]}, padding "
                "included: set Dims.max_len to the longest, or cut the sequence"
            )
