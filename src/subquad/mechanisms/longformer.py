"""Longformer: a sliding window, and a few global tokens with projections of their own.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j       j in window or global     if i is not global
    out_i = sum_j softmax_j(q'_i . k'_j / sqrt(d)) v'_j    over all j                if i is global

|i - j| <= w / 2 is the window. The first g tokens are global, as [CLS] is for classification and a question
before its context; q', k', v' are q_global, k_global, v_global. A global token that a local one sees has the
ordinary k and v. Rows of the window cost O(t (w + g) d), global rows O(g t d).

Beltagy, Peters, Cohan: Longformer: The Long-Document Transformer. arXiv:2004.05150, sections 3.1 and 3.2.

The paper chooses global tokens by task; here they are the first ones, so put them there. Its autoregressive
models have no global tokens, and are `local`.
"""

import torch

from subquad.inputs import no_autocast
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.attention import attention
from subquad.ops.packing import Packing
from subquad.ops.precision import wide
from subquad.patterns import Columns, Local, attend


class LongformerAttention(Mechanism):
    """Sees `window` neighbours and the first `globals` tokens, which see everything.

    `window`: w, half of it on either side. `globals`: g, how many of the first tokens are global; the
    sequence's own first tokens, so begin it with something that may speak for the whole.

    Approximates softmax attention by its nearest keys, and equals it when the window is twice the sequence's
    length and the global projections are the ordinary ones.

    Not for sequences without a beginning of their own, such as a sliding cut of a stream: then the global
    tokens are any tokens. Not for generation either, since global tokens see what follows; use `local`.
    """

    traits = Traits(
        name="longformer",
        paper="arXiv:2004.05150",
        family="sparse",
        bidirectional=True,
        normalised=True,
        tiny={"window": 6, "globals": 2},
    )

    def __init__(self, dims: Dims, *, causal: bool, window: int = 512, globals: int = 1) -> None:
        super().__init__(dims, causal=causal)
        if window < 2 or window % 2:
            raise ValueError(f"'longformer': window must be even and at least 2, not {window!r}")
        if globals < 1:
            raise ValueError(f"'longformer': globals must be at least 1, not {globals!r}; or use 'local'")
        self.window, self.globals = window, globals
        self.pattern = Local(window // 2) | Columns(globals)

    def projections(self) -> dict[str, int]:
        names = ("q", "k", "v", "q_global", "k_global", "v_global")
        return dict.fromkeys(names, self.dims.head_dim)

    def score_inputs(self) -> tuple[str, ...]:
        return "q", "q_global"

    def definition(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        q_global: Queries,
        k_global: Keys,
        v_global: Values,
        *,
        valid: Valid | None = None,
    ) -> Outputs:
        """Row by row without its padding: all scores of both kinds, and each token takes its own kind's."""
        out = torch.zeros_like(v)
        for row in range(len(q)):
            real = slice(None) if valid is None else valid[row]
            inputs = (x[row][:, real] for x in (q, k, v, q_global, k_global, v_global))
            q_row, k_row, v_row, q_whole, k_whole, v_whole = inputs
            i = torch.arange(q_row.shape[1], device=q.device)
            near = (i[:, None] - i).abs() <= self.window / 2
            scores = (q_row @ k_row.mT / q.shape[-1] ** 0.5).masked_fill(
                ~near & (i >= self.globals), -torch.inf
            )
            local = scores.softmax(-1) @ v_row
            whole = (q_whole @ k_whole.mT / q.shape[-1] ** 0.5).softmax(-1) @ v_whole
            out[row, :, real] = torch.where((i < self.globals)[:, None], whole, local)
        return out

    def forward(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        q_global: Queries,
        k_global: Keys,
        v_global: Values,
        *,
        valid: Valid | None = None,
    ) -> Outputs:
        packing = Packing.of(valid, like=k)
        with no_autocast(q):
            packed = [packing.pack(x) for x in wide(q, k, v, q_global, k_global, v_global)]
            local = attend(self.pattern, *packed[:3], n=None if valid is None else packing.count)
            seen = None if packing.valid is None else packing.valid[:, None, None, :]
            if torch.compiler.is_compiling():  # for any length, fewer tokens than globals among them
                i = torch.arange(q.shape[2], device=q.device)
                at = torch.arange(self.globals, device=q.device).clamp(max=q.shape[2] - 1)
                whole = attention(packed[3].index_select(2, at), *packed[4:], seen=seen)
                whole = whole.index_select(2, i.clamp(max=self.globals - 1))
                out = torch.where((i < self.globals)[:, None], whole, local)
            else:
                whole = attention(packed[3][:, :, : self.globals], *packed[4:], seen=seen)
                out = torch.cat([whole, local[:, :, self.globals :]], 2)
        return packing.unpack(out).to(v.dtype)
