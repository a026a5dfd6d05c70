"""Softmax attention within a band around the diagonal, at a cost that grows with the band and not its square.

Key j stands for the tokens from `stride * j` up to `last[j]`: for a single token where `stride` is 1, for a
pooled window otherwise. Query i sees the keys all of whose tokens lie between i - before and i + after.
Queries go in chunks; each chunk gathers the keys that any of its queries may see, and masks the rest.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.attention import attention
from subquad.ops.shared.allocation import concat_into
from subquad.ops.shared.graphed import graphed
from subquad.ops.shared.operator import needs_dispatcher
from subquad.ops.shared.shapes import require_matching_inputs, require_places, require_shape

NEVER = 2**62  # the last token of a key that nobody sees
MAX_ELEMENTS = 2**18  # numbers of queries that are taken at once, at least a chunk's


def banded_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h p d"],
    v: Float[Tensor, "b h p e"],
    *,
    last: Int[Tensor, "b p"],
    stride: int,
    before: int,
    after: int,
) -> Float[Tensor, "b h t e"]:
    """What each query gets; zeros where it sees no key.

    q       (batch, heads, tokens, d); k, v (batch, heads, keys, d and e): one floating dtype
    last    int64 (batch, keys): the last token that each key stands for
    stride  tokens from the first of one key to the first of the next
    before, after  tokens on either side of a query that keys may stand for

    Raises `ValueError` for shapes or dtypes that do not fit.
    """
    require_matching_inputs(q, k, v)
    require_shape("keys", k, *q.shape[:2], k.shape[2], q.shape[3])
    require_places("last tokens", last, q.shape[0], k.shape[2])
    return banded(q, k, v, last, stride, before, after)


@graphed(
    "banded_attention",
    "Tensor q, Tensor k, Tensor v, Tensor last, int stride, int before, int after",
    learnt=3,
    shape=lambda q, k, v, *_: (*q.shape[:3], v.shape[3]),
)
def banded(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h p d"],
    v: Float[Tensor, "b h p e"],
    last: Int[Tensor, "b p"],
    stride: int,
    before: int,
    after: int,
) -> Float[Tensor, "b h t e"]:
    batch, _, length, _ = q.shape
    before, after = min(before, length), min(after, length)
    step = max(-(-before // stride), 1)  # keys from one chunk to the next
    chunk = step * stride
    chunks = max(-(-length // chunk), 1)
    left = before // stride
    width = left + (chunk - 1 + after) // stride + 1  # keys that a chunk may see
    right = (chunks - 1) * step + width - left - k.shape[2]

    def by_chunk(x: Float[Tensor, "b h p c"]) -> Float[Tensor, "b n h w c"]:
        return F.pad(x, (0, 0, left, right)).unfold(2, width, step).transpose(1, 2).mT

    i = torch.arange(chunks * chunk, device=q.device).unflatten(0, (chunks, chunk, 1))
    j = torch.arange(chunks, device=q.device)[:, None] * step + torch.arange(width, device=q.device) - left
    end = F.pad(last, (left, right), value=NEVER).unfold(1, width, step)
    queries = F.pad(q, (0, 0, 0, chunks * chunk - length)).unflatten(2, (chunks, chunk)).transpose(1, 2)

    def mixed(i: Tensor, j: Tensor, end: Tensor, *tokens: Tensor) -> Float[Tensor, "b h t e"]:
        seen = (j[:, None] * stride >= i - before) & (end[:, :, None] <= i + after)
        q, k, v, seen = (x.flatten(0, 1) for x in (*tokens, seen))
        out = attention(q, k, v, seen=seen[:, None])
        return out.unflatten(0, (batch, i.shape[0])).transpose(1, 2).flatten(2, 3)

    whole = (batch, q.shape[1], chunks * chunk, v.shape[3])
    if needs_dispatcher():
        return mixed(i, j, end, queries, by_chunk(k), by_chunk(v))[:, :, :length]
    some = max(1, MAX_ELEMENTS // max(1, queries[:, 0].numel()))
    places = (i.split(some), j.split(some), end.split(some, 1))
    parts = zip(*places, *(x.split(some, 1) for x in (queries, by_chunk(k), by_chunk(v))), strict=True)
    return concat_into((mixed(*part) for part in parts), v, *whole, dim=2)[:, :, :length]
