"""Poolingformer: exact attention to near tokens, plus attention to pooled tokens farther away.

    y_i = softmax attention of q_i over the tokens within w_1 of i
    z_i = softmax attention of q_i over pooled keys and values of windows within w_2 of i,   w_2 > w_1
    out_i = y_i + z_i

Pooling has a kernel of kappa tokens and a stride of xi, so the second level looks far at the price of
2 w_2 / xi keys: O(n (w_1 + w_2 / xi) d).

Zhang, Gong, Shen, Li, Lv, Duan, Chen: Poolingformer: Long Document Modeling with Pooling Attention. ICML
2021, arXiv:2105.04371, section 3. No code of the authors is public. What we settled:

- The weights of a query sum to two, for each level has a softmax of its own.
- A pooled key is seen where all of its tokens lie within w_2. Windows begin at a row's first real token, and
  the last is cut where its tokens end.
- The second level reads the layer's q, k and v (the paper's weight sharing), or new ones made of y (stacked).
  The layer cannot project y, so the latter are y W with a d x d matrix for each head.
- Dynamic convolution weighs a window's tokens by softmax(mean of the window's tokens times W), with a W of
  its own for keys and for values.
- The causal form is an extension: the first level looks back only, and the second at windows that are
  complete.
"""

from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from subquad.bounds import Count, CountOrZero, one_of
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.banded_attention import NEVER, banded_attention
from subquad.ops.shared.packing import Packing
from subquad.ops.shared.pooling import Pooled, Windows
from subquad.ops.shared.precision import wide
from subquad.ops.window_attention import window_attention

Pooling = Annotated[str, one_of("mean", "max", "convolution")]
Second = Annotated[str, one_of("x", "y")]

Row = Float[Tensor, "h n d"]


class Poolingformer(Mechanism):
    """A window of tokens, and a wider window of pooled ones.

    near: w_1, tokens to each side that the first level sees.
    far: w_2, those of the second.
    kernel: kappa, tokens that are pooled into one.
    stride: xi, tokens from one pooled one to the next; from 1 to `kernel`.
    pooling: "mean", "max", or "convolution", whose weights depend on the window.
    second: what the second level reads: "x", the layer's own q, k and v; "y", projections of the first
        level's output.

    Approximates softmax attention over `far` tokens to each side, finely near by and coarsely far off, as the
    sum of two attentions, so that it never equals softmax attention. With a kernel and a stride of 1 it is
    the sum of two sliding windows.

    Not for tasks that turn on one token far away, which pooling blurs, nor for streams: it keeps no state.
    """

    traits = Traits(
        name="poolingformer",
        paper="arXiv:2105.04371",
        family="low rank",
        bidirectional=True,
        causal="strict",
        tiny={"near": 2, "far": 7, "kernel": 3, "stride": 2},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        near: CountOrZero = 128,
        far: CountOrZero = 512,
        kernel: Count = 5,
        stride: Count = 4,
        pooling: Pooling = "mean",
        second: Second = "x",
    ) -> None:
        super().__init__(dims, causal=causal)
        if stride > kernel:
            raise ValueError(
                f"'poolingformer': stride={stride!r} and kernel={kernel!r} would leave tokens out; choose a "
                "stride from 1 up to the kernel"
            )
        if far < kernel - 1:
            raise ValueError(f"'poolingformer': far must be at least kernel - 1 = {kernel - 1}, not {far!r}")
        self.near, self.far, self.kernel, self.stride = near, far, kernel, stride
        self.pooling, self.second = pooling, second
        h, d = dims.heads, dims.head_dim
        if second == "y":
            self.W_q, self.W_k, self.W_v = (nn.Parameter(torch.randn(h, d, d) * d**-0.5) for _ in range(3))
        if pooling == "convolution":
            self.D_k, self.D_v = (nn.Parameter(torch.randn(h, d, kernel) * d**-0.5) for _ in range(2))

    def score_inputs(self) -> tuple[str, ...]:
        return ("q",) if self.second == "x" else ()  # the others' second level makes queries of values

    def definition(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            tokens = [x[row][:, real] for x in (q, k, v)]
            if tokens[0].shape[1]:
                out[row, :, real] = self._define(*tokens)
        return out

    def _define(self, q: Row, k: Row, v: Float[Tensor, "h n e"]) -> Float[Tensor, "h n e"]:
        """One row without padding."""
        i = torch.arange(q.shape[1], device=q.device)[:, None]
        j = i.mT
        y = attend(q, k, v, seen=((i - j).abs() <= self.near) & ((j <= i) | (not self.causal)))
        if self.second == "y":
            q, k, v = y @ self.W_q, y @ self.W_k, y @ self.W_v
        first = torch.arange(0, q.shape[1], self.stride, device=q.device)
        last = first + self.kernel - 1
        k, v = (
            torch.stack([self._pool_one(x[:, a : a + self.kernel], D) for a in first], 1)
            for x, D in ((k, "D_k"), (v, "D_v"))
        )
        if self.causal:
            seen = (i - first <= self.far) & (last <= i)
        else:
            seen = (i - first <= self.far) & (last.clamp(max=len(i) - 1) - i <= self.far)
        return y + attend(q, k, v, seen=seen)

    def _pool_one(self, window: Float[Tensor, "h w c"], D: str) -> Float[Tensor, "h c"]:
        if self.pooling == "max":
            return window.amax(1)
        if self.pooling == "mean":
            return window.mean(1)
        logits = torch.einsum("hd,hdw->hw", window.mean(1), getattr(self, D))
        return torch.einsum("hw,hwd->hd", logits[:, : window.shape[1]].softmax(-1), window)

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None = None) -> Outputs:
        packing = Packing.of(valid, like=k)
        q, k, v = (packing.pack(x) for x in wide(q, k, v))
        return packing.unpack(self._attend(q, k, v, packing))

    def _attend(self, q: Queries, k: Keys, v: Values, packing: Packing) -> Outputs:
        """What packed tokens get from both levels."""
        count, right = packing.count, 0 if self.causal else self.near
        lengths = None if packing.valid is None else count
        y, _ = window_attention(q, k, v, left=self.near, right=right, lengths=lengths)
        if self.second == "y":
            q, k, v = (y @ W.to(y.dtype) for W in (self.W_q, self.W_k, self.W_v))
        keys, values = (Windows.of(x, count, kernel=self.kernel, stride=self.stride) for x in (k, v))
        z = banded_attention(
            q,
            self._pool(keys, "D_k"),
            self._pool(values, "D_v"),
            last=self._last(keys, count),
            stride=self.stride,
            before=self.far,
            after=0 if self.causal else self.far,
        )
        return y + z

    def _pool(self, windows: Windows, D: str) -> Pooled:
        if self.pooling == "convolution":
            return windows.weighted(windows.mean() @ getattr(self, D).to(windows.tokens.dtype))
        return windows.mean() if self.pooling == "mean" else windows.max()

    def _last(self, windows: Windows, count: Int[Tensor, " b"]) -> Int[Tensor, "b p"]:
        """The last token of each window; to the causal form a window that is cut lacks its last."""
        last = self.stride * torch.arange(windows.inside.shape[1], device=count.device) + self.kernel - 1
        if not self.causal:
            last = last.minimum(count[:, None] - 1)
        return last.masked_fill(~windows.real, NEVER)


def attend(
    q: Row, k: Float[Tensor, "h s d"], v: Float[Tensor, "h s e"], *, seen: Bool[Tensor, "n s"]
) -> Float[Tensor, "h n e"]:
    """Dense attention to what is seen, and zeros for a query that sees nothing."""
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, torch.finfo(q.dtype).min)
    return scores.softmax(-1).masked_fill(~seen, 0) @ v
