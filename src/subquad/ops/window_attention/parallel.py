"""Windows in PyTorch's operators, for devices whose numbers the host does not look at.

Blocks of queries of all rows stand side by side, each beside the slice of keys that any of its queries sees.
Scores are shifted by their greatest, so that no row has to be done again.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.shared.parallel import turns, why_not_parallel
from subquad.ops.shared.precision import wide
from subquad.ops.window_attention import Queries, Values, WindowCall, WindowResult

SMALLEST_BLOCK = 64  # queries

PerToken = Float[Tensor, "b h t c"]
Blocks = Float[Tensor, "b h x a c"]
Changes = Float[Tensor, "b h _ c"]  # of keys, and of the places before the first and behind the last


def refuses(call: WindowCall) -> str | None:
    return why_not_parallel(call.q)


def forward(call: WindowCall) -> WindowResult:
    bands, outs, logs = Bands(call), [], []
    q, k, v = bands.queries(call.q), bands.keys(call.k), bands.keys(call.v)
    for turn in bands.turns:
        own, keys, values = wide(*(x[:, :, turn] for x in (q, k, v)))
        scores = bands.scores(own, keys, turn)
        lse = scores.logsumexp(-1, keepdim=True)
        weights = scores.sub_(lse.masked_fill(lse == -torch.inf, 0)).exp_()
        outs.append((weights @ values).to(v.dtype))
        logs.append(lse)
    return WindowResult(bands.tokens(outs), bands.tokens(logs)[..., 0])


def backward(grad: WindowResult, call: WindowCall, result: WindowResult) -> tuple[Queries, Queries, Values]:
    bands, scale = Bands(call), call.q.shape[3] ** -0.5
    delta = (grad.out * result.out).sum(-1, dtype=result.lse.dtype) - grad.lse
    lse = result.lse.masked_fill(result.lse == -torch.inf, torch.inf)  # a query that sees nothing gives none
    q, g, lse, delta = map(bands.queries, (call.q, grad.out, lse[..., None], delta[..., None]))
    k, v = bands.keys(call.k), bands.keys(call.v)
    dq, dk, dv = [], bands.changes(call.k), bands.changes(call.v)
    for turn in bands.turns:
        own, grads, keys, values = wide(*(x[:, :, turn] for x in (q, g, k, v)))
        weights = bands.scores(own, keys, turn).sub_(lse[:, :, turn]).exp_()
        change = (grads @ values.mT).sub_(delta[:, :, turn]).mul_(weights).mul_(scale)
        dq.append((change @ keys).to(q.dtype))
        bands.spread(dk, change.mT @ own, turn)
        bands.spread(dv, weights.mT @ grads, turn)
    return bands.tokens(dq), bands.keyed(dk, like=call.k), bands.keyed(dv, like=call.v)


class Bands:
    """Tokens in `count` blocks of `size` queries, each beside `width` keys, from `left` before it on."""

    def __init__(self, call: WindowCall) -> None:
        self.call, length, around = call, call.q.shape[2], call.left + call.right
        self.size = min(max(SMALLEST_BLOCK, around // 2), length)
        self.count, self.width = -(-length // self.size), self.size + around
        self.behind = self.count * self.size - length  # places of the last block without a token
        batch, heads, _, d = call.q.shape
        self.turns = turns(self.count, batch * heads * self.width * (self.size + d + call.v.shape[3]))

    def queries(self, x: PerToken) -> Blocks:
        return F.pad(self.real(x), (0, 0, 0, self.behind)).unflatten(2, (self.count, self.size))

    def keys(self, x: PerToken) -> Float[Tensor, "b h x w c"]:
        """The blocks that overlap, as a view."""
        padded = F.pad(self.real(x), (0, 0, self.call.left, self.behind + self.call.right))
        return padded.unfold(2, self.width, self.size).mT

    def real(self, x: PerToken) -> PerToken:
        """Zeros behind each row's end, whatever stands there."""
        if self.call.lengths is None:
            return x
        behind = torch.arange(x.shape[2], device=x.device) >= self.call.lengths[:, None]
        return x.masked_fill(behind[:, None, :, None], 0)

    def scores(self, q: Blocks, k: Float[Tensor, "b h x w c"], turn: slice) -> Float[Tensor, "b h x a w"]:
        scores = (q * q.shape[4] ** -0.5) @ k.mT
        return scores.masked_fill_(~self.seen(turn)[:, None], -torch.inf)

    def seen(self, turn: slice) -> Bool[Tensor, "#b x a w"]:
        """Which pairs there are."""
        device, left, right = self.call.q.device, self.call.left, self.call.right
        first = self.size * torch.arange(turn.start, turn.stop, device=device)[:, None, None]
        i = first + torch.arange(self.size, device=device)[:, None]
        j = first + torch.arange(self.width, device=device) - left
        seen = (j >= 0) & (i - j <= left) & (j - i <= right)
        if self.call.lengths is None:
            return (seen & (torch.maximum(i, j) < self.call.q.shape[2]))[None]
        return seen & (torch.maximum(i, j) < self.call.lengths[:, None, None, None])

    def tokens(self, blocks: list[Tensor]) -> PerToken:
        return torch.cat(blocks, 2).flatten(2, 3)[:, :, : self.call.q.shape[2]].contiguous()

    def changes(self, x: PerToken) -> Changes:
        """Zeros for the gradients of keys."""
        pieces = self.count + -(-self.width // self.size)
        (zeros,) = wide(x.new_zeros(*x.shape[:2], pieces * self.size, x.shape[3]))
        return zeros

    def spread(self, to: Changes, x: Float[Tensor, "b h x w c"], turn: slice) -> None:
        """Add the gradients of blocks that overlap, a block's width of each at a time."""
        blocks = to.unflatten(2, (-1, self.size))
        for n, piece in enumerate(x.split(self.size, 3)):
            blocks[:, :, turn.start + n : turn.stop + n, : piece.shape[3]] += piece

    def keyed(self, x: Changes, *, like: PerToken) -> PerToken:
        """The gradients of the keys that there are."""
        return x.narrow(2, self.call.left, like.shape[2]).to(like.dtype).contiguous()
