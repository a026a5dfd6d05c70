"""A batch of sequences as layers hand it on: padding zeroed and positions counted once for all."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from subquad.mechanism import Valid
from subquad.nn.positions import HiddenStates, Ordinals, count
from subquad.shards import Shards


class Sequence(NamedTuple):
    """Tokens, which of them are real, and where each stands. `make_sequence` makes one of raw inputs.

    values: one vector a token; finite at padding, but unspecified there.
    valid: True at real tokens, padding may stand anywhere; None: all are real.
    positions: of each token among its row's real ones, from 0; 0 at padding.
    shards: where these are one rank's tokens of a sequence that several share. None: they are all.
    """

    values: HiddenStates
    valid: Valid | None
    positions: Ordinals
    shards: Shards | None = None


def make_sequence(
    x: HiddenStates,
    *,
    valid: Valid | None = None,
    offset: Int[Tensor, " #b"] | None = None,
    shards: Shards | None = None,
) -> tuple[Sequence, Int[Tensor, " #b"]]:
    """A sequence of raw inputs, with zeros at padding, and how many real tokens there are by its end.

    x: one vector a token; anything, even NaN, may stand at padding.
    valid: True at real tokens. None: all are real.
    offset: real tokens that came before, in each row or in all. None: there were none, or those of `shards`.
    shards: where these are one rank's tokens of a sequence that several share. None: they are all.
    """
    if offset is None:
        none = torch.zeros(1, dtype=torch.int64, device=x.device)
        offset = none if shards is None else shards.before
    positions, end = count(x.shape[1], valid=valid, offset=offset)
    return Sequence(zero_padded(x, valid), valid, positions, shards), end


def zero_padded(x: HiddenStates, valid: Valid | None) -> HiddenStates:
    """`x` with zeros at padding: NaN times a gradient of zero would be NaN in the gradients of weights."""
    return x if valid is None else x.masked_fill(~valid[..., None], 0)


def finite_queries(query: HiddenStates, valid: Valid | None) -> HiddenStates:
    """`query` with zeros for tokens at padding that are not finite: it may be a copy of the keys.

    In cross-attention the mask says nothing of finite queries, as in `inputs.zero_padding`.
    """
    if valid is None or query.shape[1] != valid.shape[1]:
        return query
    return query.masked_fill(~valid[..., None] & ~query.isfinite().all(-1, keepdim=True), 0)
