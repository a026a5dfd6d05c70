"""Softmax attention to one's own block of tokens, up to oneself, and to earlier blocks that each query chose.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j    over j <= i in the own block, and j in chosen ones

Queries are sorted by the blocks that they chose, so that each block of keys is read beside tiles of its own
queries (`tile_attention`). How many tiles that takes is not known beforehand, but how many at most: one for
each WIDTH choices, and one more for each block. Work and memory grow with the choices.

The few new queries of a stream gather the keys of their blocks instead.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.attention import attention
from subquad.ops.shared.attention_operator import attention_operator
from subquad.ops.shared.operator import call_op
from subquad.ops.shared.precision import wide
from subquad.ops.shared.shapes import require_places
from subquad.ops.shared.topk import stable_topk
from subquad.ops.shared.unused import unused
from subquad.ops.tile_attention import BACKENDS, TileCall, TileResult, Tiling
from subquad.ops.window_attention import require_tokens

WIDTH = 64  # queries of a tile
GATHERED_QUERIES = 16  # of a stream, whose keys are gathered at once

Heads = Float[Tensor, "b h t c"]
Blocks = Int[Tensor, "b h t m"]


def block_attention(
    q: Heads,
    k: Heads,
    v: Heads,
    chosen: Blocks,
    *,
    block: int,
    lengths: Int[Tensor, " b"] | None = None,
) -> Heads:
    """What each query gets from its own block and from those that it chose.

    q, k     (batch, heads, tokens, d), v (batch, heads, tokens, e): one floating dtype
    chosen   int64 (batch, heads, tokens, m): blocks before the query's own, none twice; below 0: none
    block    tokens of a block
    lengths  int64 (batch): the tokens of each row, with padding behind them. None: all are tokens

    Queries in padding see nothing, and get zeros. Raises `ValueError` for shapes or dtypes that do not fit.
    """
    require_tokens(q, k, v, lengths)
    require_places("chosen blocks", chosen, *q.shape[:3], chosen.shape[3])
    if q.shape[0] == 0 or q.shape[2] == 0:
        return v + unused(q, k)
    return call_op(blocks_op, *wide(q, k, v), chosen, lengths, block)[0].to(v.dtype)


def best_before(scores: Float[Tensor, "b h t blocks"], own: Int[Tensor, "#b t"], count: int) -> Blocks:
    """The blocks with the largest scores before each query's own; -1 where there are fewer than `count`."""
    own = own[:, None, :, None]
    if count == 0:
        return own.expand(*scores.shape[:3], 1)[..., :0]
    before = torch.arange(scores.shape[3] + count, device=scores.device) < own
    best = stable_topk(F.pad(scores, (0, count)).masked_fill(~before, -torch.inf), count)
    return best.masked_fill(best >= own, -1)


def gathered_blocks(
    q: Heads,
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    chosen: Blocks,
    *,
    block: int,
    i: Int[Tensor, "b t"],
) -> Float[Tensor, "b h t e"]:
    """What tokens `i` get from their own blocks and from those that they chose: no other key is read.

    q, k, v  (batch, heads, tokens, d) and (batch, heads, keys, d and e): one dtype, float32 or float64
    chosen   int64 (batch, heads, tokens, m), as in `block_attention`
    block    tokens of a block
    i        int64 (batch, tokens): the place of each query among the keys
    """
    if q.shape[2] == 0:
        return v[:, :, :0] + unused(q, k)
    own = (i // block)[:, None, :, None].expand(*q.shape[:3], 1)
    within = torch.arange(block, device=q.device)
    j = (torch.cat([chosen, own], -1)[..., None] * block + within).flatten(3)
    seen = (j >= 0) & (j <= i[:, None, :, None])
    place = j.clamp(0, k.shape[2] - 1).flatten(2)[..., None]
    near = (x.gather(2, place.expand(-1, -1, -1, x.shape[3])) for x in (k, v))
    near_k, near_v = (x.unflatten(2, j.shape[2:]).flatten(1, 2) for x in near)
    out = attention(q.flatten(1, 2)[:, :, None], near_k, near_v, seen=seen.flatten(1, 2)[:, :, None])
    return out[:, :, 0].unflatten(1, q.shape[1:3])


def blocks_call(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, lengths: Tensor | None, block: int
) -> TileCall:
    """The tiles, where each head is a row of its own: heads choose for themselves."""
    heads = q.shape[:2]
    if lengths is not None:
        lengths = lengths[:, None].expand(heads).flatten()
    tilings = [own_blocks(q.shape[2], block, q.device)]
    if chosen.shape[3]:
        tilings.append(chosen_blocks(chosen.flatten(0, 1), block))
    q, k, v = (x.flatten(0, 1)[:, None] for x in (q, k, v))
    return TileCall(q, k, v, tilings, lengths, None)


def own_blocks(length: int, block: int, device: torch.device) -> Tiling:
    count = -(-length // block)
    keys = torch.arange(count, device=device)[None, :, None]
    past = torch.ones(block, block, dtype=torch.bool, device=device).tril()
    return Tiling(None, keys, past.expand(1, count, block, block).contiguous(), block, block)


def chosen_blocks(chosen: Int[Tensor, "rows t m"], block: int) -> Tiling:
    """A block of keys beside the queries that chose it, in as many tiles as these fill."""
    rows, length, each = chosen.shape
    count = -(-length // block)
    tiles = length * each // WIDTH + count
    of_block, order = chosen.masked_fill(chosen < 0, count).flatten(1).sort(stable=True)
    blocks = torch.arange(count + 1, device=chosen.device).expand(rows, -1).contiguous()
    first = torch.searchsorted(of_block, blocks)  # where the queries of each block begin
    filled = F.pad((first.diff() + WIDTH - 1).div(WIDTH, rounding_mode="floor").cumsum(1), (1, 0))
    within = torch.arange(length * each, device=chosen.device) - first.gather(1, of_block)
    place = (filled.gather(1, of_block) * WIDTH + within).masked_fill(of_block == count, tiles * WIDTH)
    queries = chosen.new_full((rows, tiles * WIDTH + 1), -1).scatter(1, place, order // each)
    keys = chosen.new_full((rows, tiles + 1), -1)
    keys = keys.scatter(1, place.div(WIDTH, rounding_mode="floor"), of_block)
    seen = torch.ones(1, tiles, 1, 1, dtype=torch.bool, device=chosen.device)
    queries = queries[:, :-1].unflatten(1, (tiles, WIDTH)).contiguous()
    return Tiling(queries, keys[:, :-1, None].contiguous(), seen, WIDTH, block)


def blocks_forward(*inputs: Any) -> tuple[int, TileResult]:
    q = inputs[0]
    backend, result = BACKENDS.run("forward", blocks_call(*inputs))
    out, lse = (x[:, 0].unflatten(0, q.shape[:2]) for x in result)
    return backend, TileResult(out, lse)


def blocks_backward(
    grad: Tensor, _: Tensor, backend: Tensor, out: Tensor, lse: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    q = inputs[0]
    by_row, out, lse = (x.flatten(0, 1)[:, None] for x in (grad, out, lse))
    grads = BACKENDS[backend].backward(by_row, blocks_call(*inputs), TileResult(out, lse))
    dq, dk, dv = (x[:, 0].unflatten(0, q.shape[:2]) for x in grads)
    return dq, dk, dv


blocks_op = attention_operator(
    "blocks",
    "Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor? lengths, int block",
    blocks_forward,
    blocks_backward,
)
