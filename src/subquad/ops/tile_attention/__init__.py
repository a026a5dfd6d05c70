"""Softmax attention over tiles: some queries beside some keys, and one softmax over all tiles of a query.

    out_i = sum_j exp(s_ij - lse_i) v_j,    lse_i = log sum_j exp(s_ij),    over the pairs (i, j) of any tile

and, if there is one, over the pairs of a band: a sliding window (`window_attention`). Every pair belongs to
one tile at most, and a query to any number of them. Only the outputs and the final lse are kept for the
backward pass, where tiles make their weights again.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.backends import Backends
from subquad.ops.shared.attention_operator import attention_operator
from subquad.ops.shared.operator import call_op
from subquad.ops.shared.shapes import require_dtype, require_places, require_shape
from subquad.ops.window_attention import WindowCall, require_tokens, window_call


class Tiling(NamedTuple):
    """Tiles of one shape. Places below zero, or behind the last token, hold none.

    queries  int64 (rows, tiles, width): the queries of each tile. None: tile after tile, all tokens in order
    keys     int64 (rows, tiles, c), in units: key c stands for tokens c * unit to (c + 1) * unit - 1
    seen     bool (rows, tiles, A, C): the pairs; one entry may stand for several queries or keys side by side
    width    queries of a tile
    unit     tokens of a unit

    Rows are those of the batch, or one for all.
    """

    queries: Int[Tensor, "#b tiles a"] | None
    keys: Int[Tensor, "#b tiles c"]
    seen: Bool[Tensor, "#b tiles A C"]
    width: int
    unit: int


class TileCall(NamedTuple):
    """Inputs that fit one another, as `tile_attention` says."""

    q: Float[Tensor, "b h t d"]
    k: Float[Tensor, "b h t d"]
    v: Float[Tensor, "b h t e"]
    tilings: list[Tiling]
    lengths: Int[Tensor, " b"] | None
    band: tuple[int, int] | None

    @property
    def window(self) -> WindowCall | None:
        """The band alone."""
        return None if self.band is None else window_call(*self[:3], self.lengths, *self.band)


class TileResult(NamedTuple):
    out: Float[Tensor, "b h t e"]
    lse: Float[Tensor, "b h t"]


BACKENDS = Backends[TileCall](__name__, "cpu", "parallel", "reference")


def tile_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t e"],
    tilings: list[Tiling],
    *,
    lengths: Int[Tensor, " b"] | None = None,
    band: tuple[int, int] | None = None,
) -> Float[Tensor, "b h t e"]:
    """Attention over the pairs of all tilings and of the band; zeros for a query that sees nothing.

    q, k     (batch, heads, tokens, d), v (batch, heads, tokens, e): float32 or float64, one dtype
    lengths  int64 (batch): the tokens of each row, with padding behind them. None: all are tokens
    band     keys to the left and right that each query sees beside those of its tiles. None: no others

    Raises `ValueError` for inputs whose shapes or dtypes do not fit one another.
    """
    require_tokens(q, k, v, lengths)
    for tiling in tilings:
        require_tiling(tiling, q)
    return call_op(tiles_op, q, k, v, lengths, *split(tilings), *((None, None) if band is None else band))[0]


def require_tiling(tiling: Tiling, q: Tensor) -> None:
    """Raise `ValueError` unless what a tiling says of pairs fits its places, and these the batch."""
    queries, keys, seen, width, unit = tiling
    for x in (keys, seen) if queries is None else (queries, keys, seen):
        if x.shape[0] not in (1, q.shape[0]):
            raise ValueError(f"tiles of {x.shape[0]} rows do not fit queries of {q.shape[0]}")
    tiles, c = keys.shape[1:]
    require_places("places of keys", keys, keys.shape[0], tiles, c)
    if queries is not None:
        require_places("places of queries", queries, queries.shape[0], tiles, width)
    rows, columns = seen.shape[2:]
    require_shape("pairs", seen, seen.shape[0], tiles, rows, columns)
    require_dtype("pairs", seen, torch.bool)
    if not rows or not columns or width % rows or c * unit % columns:
        raise ValueError(f"pairs of {rows} x {columns} do not fit tiles of {width} x {c * unit} tokens")


def split(tilings: list[Tiling]) -> tuple[list[Tensor], list[int], list[int]]:
    """Tilings as an operator can take them: in place of None, for queries in order, an empty tensor."""
    queries = [x.keys.new_empty(0) if x.queries is None else x.queries for x in tilings]
    tensors = [*queries, *(x.keys for x in tilings), *(x.seen for x in tilings)]
    return tensors, [x.width for x in tilings], [x.unit for x in tilings]


def tile_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    tensors: list[Tensor],
    widths: list[int],
    units: list[int],
    left: int | None,
    right: int | None,
) -> TileCall:
    """The call, from what `split` made of its tilings."""
    count = len(widths)
    queries = (x if x.numel() else None for x in tensors[:count])
    tilings = list(map(Tiling, queries, tensors[count : 2 * count], tensors[2 * count :], widths, units))
    return TileCall(q, k, v, tilings, lengths, None if left is None or right is None else (left, right))


def forward(*inputs: Any) -> tuple[int, TileResult]:
    return BACKENDS.run("forward", tile_call(*inputs))


def backward(
    grad: Tensor, _: Tensor, backend: Tensor, out: Tensor, lse: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[backend].backward(grad, tile_call(*inputs), TileResult(out, lse))


tiles_op = attention_operator(
    "tiles",
    "Tensor q, Tensor k, Tensor v, Tensor? lengths, Tensor[] tilings, int[] widths, int[] units, "
    "int? left, int? right",
    forward,
    backward,
)
