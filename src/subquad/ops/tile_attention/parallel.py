"""Tiles in PyTorch's operators, for devices whose numbers the host does not look at.

Tiles of all rows stand side by side and are computed whole: which of their pairs count, a mask says. Outputs
of a tiling, and of those before it, merge by lse. Behind the last token there are places with zeros: what a
tile lacks is read from there and written to there.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.shared.parallel import turns, why_not_parallel
from subquad.ops.tile_attention import TileCall, TileResult
from subquad.ops.window_attention import WindowResult
from subquad.ops.window_attention import parallel as window

Extended = Float[Tensor, "b h _ e"]


def refuses(call: TileCall) -> str | None:
    return why_not_parallel(call.q)


def forward(call: TileCall) -> TileResult:
    extend, length = Extend(call), call.q.shape[2]
    q, k, v = extend.real(call.q * call.q.shape[3] ** -0.5, call.k, call.v)
    lowest = of_none(q)
    if call.window is None:
        out, lse = torch.zeros_like(v), v.new_full((*v.shape[:3], 1), lowest)
    else:
        band = window.forward(call.window)
        out, lse = extend(band.out), extend(band.lse[..., None].clamp(min=lowest))
    for tiles in some_tiles(call):
        scores = tiles.scores(q, k)
        part = scores.logsumexp(-1, keepdim=True)
        if isinstance(tiles.i, slice):
            before, whole = tiles.queries(lse), tiles.queries(out)  # views
            after = torch.logaddexp(before, part)
            weights = scores.sub_(after).exp_()
            whole.mul_((before - after).exp_()).add_(weights @ tiles.keys(v))
            before.copy_(after)
        else:  # a query may be in several tiles
            after = with_parts(lse, tiles.i, part)
            weights = scores.sub_(tiles.queries(after)).exp_()
            out.mul_((lse - after).exp_())
            add(out, tiles.i, weights @ tiles.keys(v))
            lse = after
    out, lse = out[:, :, :length], lse[:, :, :length]
    unseeing = lse <= lowest / 2
    if extend.padding is not None:
        unseeing = unseeing | extend.padding
    return TileResult(out.masked_fill(unseeing, 0), lse.masked_fill(unseeing, -torch.inf)[..., 0])


def backward(grad: Tensor, call: TileCall, result: TileResult) -> tuple[Tensor, Tensor, Tensor]:
    extend, length, scale = Extend(call), call.q.shape[2], call.q.shape[3] ** -0.5
    if call.window is None:
        changes = map(torch.zeros_like, call[:3])
    else:
        grads = WindowResult(grad, torch.zeros_like(result.lse))
        changes = window.backward(grads, call.window, WindowResult(*result))
    dq, dk, dv = map(extend, changes)
    delta = extend((grad * result.out).sum(-1, keepdim=True))
    lse = extend(result.lse.masked_fill(result.lse == -torch.inf, torch.inf)[..., None])  # which gives none
    q, k, v, g = extend.real(call.q * scale, call.k, call.v, grad)
    for tiles in some_tiles(call):
        own, keys, grads = tiles.queries(q), tiles.keys(k), tiles.queries(g)
        weights = tiles.scores(q, k).sub_(tiles.queries(lse)).exp_()
        change = (grads @ tiles.keys(v).mT).sub_(tiles.queries(delta)).mul_(weights)
        if isinstance(tiles.i, slice):
            tiles.queries(dq).add_(change @ keys, alpha=scale)
        else:
            add(dq, tiles.i, (change @ keys).mul_(scale))
        add(dk, tiles.j, change.mT @ own)
        add(dv, tiles.j, weights.mT @ grads)
    dq, dk, dv = (x[:, :, :length].contiguous() for x in (dq, dk, dv))
    return dq, dk, dv


def of_none(x: Tensor) -> float:
    """The score of no pair, and the lse of none; infinities have no differences."""
    return torch.finfo(x.dtype).min / 4


class Extend:
    """Gives tokens as many places of zeros behind them as the tiles of a call reach, one at least."""

    def __init__(self, call: TileCall) -> None:
        self.length, self.padding = call.q.shape[2], None
        ends = (x.keys.shape[1] * x.width for x in call.tilings if x.queries is None)
        self.room = max([self.length + 1, *ends]) - self.length
        if call.lengths is not None:
            place = torch.arange(self.length, device=call.q.device)
            self.padding = (place >= call.lengths[:, None])[:, None, :, None]

    def __call__(self, x: Float[Tensor, "b h t e"]) -> Extended:
        return F.pad(x, (0, 0, 0, self.room))

    def real(self, *tensors: Float[Tensor, "b h t _"]) -> Iterator[Extended]:
        """With zeros in padding too, whatever stands there."""
        return (self(x if self.padding is None else x.masked_fill(self.padding, 0)) for x in tensors)


class Tiles(NamedTuple):
    """Some tiles, by the places of their queries and keys."""

    i: slice | Int[Tensor, "#b x a"]  # a slice of places where they are in order
    j: Int[Tensor, "#b x c"]
    hidden: Bool[Tensor, "#b x A c"]  # the pairs that do not count; an entry for several queries side by side
    width: int

    def queries(self, x: Extended) -> Float[Tensor, "b h x a e"]:
        """What belongs to the queries, a view where they are in order."""
        if isinstance(self.i, slice):
            return x[:, :, self.i].unflatten(2, (-1, self.width))
        return taken(x, self.i)

    def keys(self, x: Extended) -> Float[Tensor, "b h x c e"]:
        return taken(x, self.j)

    def scores(self, q: Extended, k: Extended) -> Float[Tensor, "b h x a c"]:
        scores = self.queries(q) @ self.keys(k).mT
        by_entry = scores.unflatten(3, (self.hidden.shape[2], -1))
        by_entry.masked_fill_(self.hidden[:, None, :, :, None], of_none(scores))
        return scores


def some_tiles(call: TileCall) -> Iterator[Tiles]:
    """As many of a tiling's tiles at once as memory allows."""
    batch, heads, nowhere, d = call.q.shape
    end = nowhere if call.lengths is None else call.lengths[:, None, None]
    for queries, keys, seen, width, unit in call.tilings:
        count, columns = keys.shape[1], keys.shape[2] * unit
        j = (keys[..., None] * unit + torch.arange(unit, device=keys.device)).flatten(2)
        missing = (j < 0) | (j >= end)
        j = torch.where(missing, nowhere, j)
        if queries is not None:
            queries = torch.where((queries < 0) | (queries >= nowhere), nowhere, queries)
        for turn in turns(count, batch * heads * columns * (width + max(d, call.v.shape[3]))):
            absent = missing[:, turn].unflatten(2, (seen.shape[3], -1))[:, :, None]
            hidden = (seen[:, turn, :, :, None] <= absent).flatten(3)  # not seen, or absent
            here = slice(turn.start * width, turn.stop * width) if queries is None else queries[:, turn]
            yield Tiles(here, j[:, turn], hidden, width)


def taken(x: Extended, places: Int[Tensor, "#b x n"]) -> Float[Tensor, "b h x n e"]:
    if len(places) == 1:
        return x.index_select(2, places.flatten()).unflatten(2, places.shape[1:])
    return x.gather(2, index(places, x)).unflatten(2, places.shape[1:])


def with_parts(
    lse: Float[Tensor, "b h t 1"], places: Int[Tensor, "#b x n"], part: Float[Tensor, "b h x n 1"]
) -> Float[Tensor, "b h t 1"]:
    """The logarithm of sums, of which each place has another `part` or several."""
    highest = lse.scatter_reduce(2, index(places, lse), part.flatten(2, 3), "amax")
    total = (lse - highest).exp_()
    add(total, places, (part - taken(highest, places)).exp_())
    return total.log_().add_(highest)


def add(to: Extended, places: Int[Tensor, "#b x n"], x: Float[Tensor, "b h x n e"]) -> None:
    """To what is at each place."""
    if len(places) == 1:
        to.index_add_(2, places.flatten(), x.flatten(2, 3))
    else:
        to.scatter_add_(2, index(places, to), x.flatten(2, 3))


def index(places: Int[Tensor, "#b x n"], like: Extended) -> Int[Tensor, "b h _ e"]:
    """For `gather` and `scatter` along the tokens."""
    b, h, _, e = like.shape
    return places.flatten(1)[:, None, :, None].expand(b, h, -1, e)
