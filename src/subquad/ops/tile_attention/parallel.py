"""Tiles in PyTorch's operators, for devices whose numbers the host does not look at.

Tiles of all rows stand side by side and are computed whole: which of their pairs count, a mask says. Outputs
of a tiling, and of those before it, merge by lse.
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
    q, k, v = map(with_nowhere, call[:3])
    if call.window is None:
        out, lse = torch.zeros_like(v), v.new_full(v.shape[:3], -torch.inf)
    else:
        band = window.forward(call.window)
        out, lse = with_nowhere(band.out), F.pad(band.lse, (0, 1))
    for tiles in some_tiles(call):
        scores = tiles.scores(q, k)
        own = scores.logsumexp(-1, keepdim=True)
        weights = scores.sub_(own.masked_fill(own == -torch.inf, 0)).exp_()
        before = tiles.queries(lse[..., None])
        after = torch.logaddexp(before, own)
        known = after.masked_fill(after == -torch.inf, 0)
        whole = tiles.queries(out).mul_((before - known).exp_())
        whole.add_((weights @ tiles.keys(v)).mul_((own - known).exp_()))
        put(out, tiles.i, whole)
        put(lse[..., None], tiles.i, after)
    return TileResult(out[:, :, :-1].contiguous(), lse[:, :, :-1].contiguous())


def backward(grad: Tensor, call: TileCall, result: TileResult) -> tuple[Tensor, Tensor, Tensor]:
    scale = call.q.shape[3] ** -0.5
    if call.window is None:
        changes = map(torch.zeros_like, call[:3])
    else:
        grads = WindowResult(grad, torch.zeros_like(result.lse))
        changes = window.backward(grads, call.window, WindowResult(*result))
    dq, dk, dv = map(with_nowhere, changes)
    delta = (grad * result.out).sum(-1, keepdim=True)
    lse = result.lse.masked_fill(result.lse == -torch.inf, torch.inf)  # a query that sees nothing gives none
    q, k, v, g, lse, delta = map(with_nowhere, (*call[:3], grad, lse[..., None], delta))
    for tiles in some_tiles(call):
        own, keys, grads = tiles.queries(q), tiles.keys(k), tiles.queries(g)
        weights = tiles.scores(q, k).sub_(tiles.queries(lse)).exp_()
        change = (grads @ tiles.keys(v).mT).sub_(tiles.queries(delta)).mul_(weights).mul_(scale)
        add(dq, tiles.i, change @ keys)
        add(dk, tiles.j, change.mT @ own)
        add(dv, tiles.j, weights.mT @ grads)
    dq, dk, dv = (x[:, :, :-1].contiguous() for x in (dq, dk, dv))
    return dq, dk, dv


class Tiles(NamedTuple):
    """Some tiles, by the places of their queries and keys: that behind the last token for those they lack."""

    i: Int[Tensor, "#b x a"]
    j: Int[Tensor, "#b x c"]
    seen: Bool[Tensor, "#b x a c"]

    def queries(self, x: Extended) -> Float[Tensor, "b h x a e"]:
        return taken(x, self.i)

    def keys(self, x: Extended) -> Float[Tensor, "b h x c e"]:
        return taken(x, self.j)

    def scores(self, q: Extended, k: Extended) -> Float[Tensor, "b h x a c"]:
        scores = self.queries(q) @ self.keys(k).mT * q.shape[3] ** -0.5
        return scores.masked_fill_(~self.seen[:, None], -torch.inf)


def some_tiles(call: TileCall) -> Iterator[Tiles]:
    """As many of a tiling's tiles at once as memory allows."""
    batch, heads, nowhere, d = call.q.shape
    device = call.q.device
    end = nowhere if call.lengths is None else call.lengths[:, None, None]

    def known(place: Int[Tensor, "#b x _"]) -> Int[Tensor, "#b x _"]:
        return torch.where((place >= 0) & (place < end), place, nowhere)

    for queries, keys, seen, width, unit in call.tilings:
        count, columns = keys.shape[1], keys.shape[2] * unit
        if queries is None:
            queries = torch.arange(count * width, device=device).view(1, count, width)
        for turn in turns(count, batch * heads * columns * (width + d + call.v.shape[3])):
            i, j, pairs = (x[:, turn] for x in (queries, keys, seen))
            j = (j[..., None] * unit + torch.arange(unit, device=device)).flatten(2)
            i, j = known(i), known(j)
            pairs = pairs.repeat_interleave(width // pairs.shape[2], 2)
            pairs = pairs.repeat_interleave(columns // pairs.shape[3], 3)
            yield Tiles(i, j, pairs & (i != nowhere)[..., None] & (j != nowhere)[..., None, :])


def with_nowhere(x: Extended) -> Extended:
    """One place more, with zeros: what there is not is read from there and written to there."""
    return F.pad(x, (0, 0, 0, 1))


def taken(x: Extended, places: Int[Tensor, "#b x n"]) -> Float[Tensor, "b h x n e"]:
    if len(places) == 1:
        return x.index_select(2, places.flatten()).unflatten(2, places.shape[1:])
    return x.gather(2, index(places, x)).unflatten(2, places.shape[1:])


def put(to: Extended, places: Int[Tensor, "#b x n"], x: Float[Tensor, "b h x n e"]) -> None:
    """Each at its place; of several that are for one place, any."""
    to.scatter_(2, index(places, to), x.flatten(2, 3))


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
