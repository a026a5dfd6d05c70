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

from typing import NamedTuple

import torch
from torch import Tensor

from subquad.bounds import Count, EvenCount
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.ops.attention import attention
from subquad.ops.shared.packing import Packing, take
from subquad.ops.shared.precision import wide
from subquad.patterns import Columns, Local, attend


class LongformerInputs(NamedTuple):
    q: Queries
    k: Keys
    v: Values
    q_global: Queries
    k_global: Keys
    v_global: Values


class LongformerAttention(Mechanism):
    """Sees `window` neighbours and the first `globals` tokens, which see everything.

    window: w, tokens, half of them on either side; even.
    globals: g, how many of the first tokens are global. They are the sequence's own, so begin it with
        something that may speak for the whole. Without any it would be `local`.

    Approximates softmax attention by its nearest keys, and equals it when the window is twice the sequence's
    length and the global projections are the ordinary ones.

    Not for sequences without a beginning of their own, such as a sliding cut of a stream: then the global
    tokens are any tokens. Not for generation either, since global tokens see what follows; use `local`.
    """

    inputs = LongformerInputs
    zeros_padding = False
    traits = Traits(
        name="longformer",
        paper="arXiv:2004.05150",
        family="sparse",
        bidirectional=True,
        normalised=True,
        tiny={"window": 6, "globals": 2},
    )

    def __init__(self, dims: Dims, *, causal: bool, window: EvenCount = 512, globals: Count = 1) -> None:
        super().__init__(dims, causal=causal)
        self.window, self.globals = window, globals
        self.pattern = Local(window // 2) | Columns(globals)

    def score_inputs(self) -> tuple[str, ...]:
        return "q", "q_global"

    def turned_inputs(self) -> tuple[str, ...]:
        return "q", "k", "q_global", "k_global"

    def definition(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding: all scores of both kinds, and each token takes its own kind's."""
        out = torch.zeros_like(inputs[0])
        for row in range(len(out)):
            real = slice(None) if valid is None else valid[row]
            q, k, v, q_global, k_global, v_global = (x[row][:, real] for x in inputs)
            i = torch.arange(q.shape[1], device=q.device)
            near = (i[:, None] - i).abs() <= self.window / 2
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~near & (i >= self.globals), -torch.inf)
            local = scores.softmax(-1) @ v
            whole = (q_global @ k_global.mT / q.shape[-1] ** 0.5).softmax(-1) @ v_global
            out[row, :, real] = torch.where((i < self.globals)[:, None], whole, local)
        return out

    def forward(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        q, k, v, q_global, *keyed = inputs
        local = attend(self.pattern, q, k, v, valid=valid)
        if valid is None and not torch.compiler.is_compiling():
            whole = attention(*wide(q_global[:, :, : self.globals], *keyed))
            return torch.cat([whole.to(local.dtype), local[:, :, self.globals :]], 2)
        packing, seen = Packing.of(valid, like=k), None
        if torch.compiler.is_compiling():  # for any length, fewer tokens than globals among them
            i = torch.arange(self.globals, device=q.device).clamp(max=q.shape[2] - 1)
        else:
            i = torch.arange(min(self.globals, q.shape[2]), device=q.device)
        at = i.expand(q.shape[0], -1) if packing.order is None else packing.order.index_select(1, i)
        real = i < packing.count[:, None]
        if valid is not None:
            seen = valid[:, None, None, :]
            keyed = [x.masked_fill(~seen.mT, 0) for x in keyed]
        whole = attention(*wide(take(q_global, at, real=real), *keyed), seen=seen).to(local.dtype)
        places, missing = (x[:, None, :, None] for x in (at, ~real))
        return local.scatter(2, places.expand_as(whole), whole.masked_fill(missing, 0))
