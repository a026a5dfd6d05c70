"""Positions: where a token stands among the real tokens of its sequence.

Padding takes no position. Tokens are counted, not indexed, so left padding and holes change nothing, and a
stream goes on counting where its last chunk ended.

    none         nothing is added
    learnt       a vector per position, up to `max_len`
    sinusoidal   sines and cosines of the position. Vaswani et al. 2017, arXiv:1706.03762, section 3.5
    rotary       queries and keys turn with the position, so that their dot products see differences of
                 positions only. Su et al. 2021, arXiv:2104.09864, section 3.2
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from subquad.mechanism import Valid
from subquad.ops.shared.rotary import phases
from subquad.ops.shared.waiting import require_at_most
from subquad.plugins import hint

KINDS = ("none", "learnt", "sinusoidal", "rotary")

Ordinals = Int[Tensor, "#b t"]
HiddenStates = Float[Tensor, "b t m"]


def count(
    length: int, *, valid: Valid | None, offset: Int[Tensor, " #b"]
) -> tuple[Ordinals, Int[Tensor, " #b"]]:
    """The position of each token among its row's real ones, 0 at padding, and the offset after the last.

    length: tokens of each row, padding included.
    valid: True at real tokens. None: all are real.
    offset: real tokens before these, of each row or of all.
    """
    if valid is None:
        return offset[:, None] + torch.arange(length, device=offset.device), offset + length
    ordinals = offset[:, None] + valid.cumsum(1) - 1
    return ordinals.masked_fill(~valid, 0), offset + valid.sum(1)


class NoPositions(nn.Module):
    """For `none`, and for `rotary`, which attention applies itself."""

    def forward(self, x: HiddenStates, ordinals: Ordinals) -> HiddenStates:
        return x


class LearntPositions(nn.Module):
    """Adds a learnt vector per position. A sequence beyond the table is a `ValueError`.

    dim: width of the model.
    max_len: tokens of the longest sequence.
    """

    def __init__(self, dim: int, *, max_len: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_len, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=0.02)  # as in GPT-2 and BERT

    def forward(self, x: HiddenStates, ordinals: Ordinals) -> HiddenStates:
        max_len = len(self.table)
        require_at_most(
            max_len,
            ordinals + 1,
            f"a sequence has {{}} tokens and learnt positions end at max_len={max_len}: raise max_len, or "
            "use 'sinusoidal' or 'rotary' positions",
        )
        return x + self.table[ordinals]


class SinusoidalPositions(nn.Module):
    """Adds the sines, then the cosines, of dim / 2 waves.

    dim: width of the model, even.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"sinusoidal positions need an even dim, not {dim}")

    def forward(self, x: HiddenStates, ordinals: Ordinals) -> HiddenStates:
        angles = phases(ordinals, x.shape[-1] // 2, dtype=x.dtype)
        return x + torch.cat([angles.sin(), angles.cos()], -1).to(x.dtype)


def positional_encoding(kind: str, dim: int, *, max_len: int | None) -> nn.Module:
    """The module that adds positions: `module(x, ordinals)`. Raises `ValueError` for what cannot be built.

    kind: one of `KINDS`.
    dim: width of the model.
    max_len: tokens of the longest sequence, for "learnt". None: no bound.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown positions {kind!r}{hint(kind, KINDS)}")
    if kind == "learnt":
        if max_len is None:
            raise ValueError("learnt positions are a table: set max_len to the longest sequence")
        return LearntPositions(dim, max_len=max_len)
    return SinusoidalPositions(dim) if kind == "sinusoidal" else NoPositions()
