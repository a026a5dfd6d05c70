"""Windows in PyTorch's operators.

A block of queries stands beside the slice of keys that any of them sees; in the backward pass a block of keys
beside the queries that see any of them, so that only the queries' gradients add up.

Weights are exp(s_ij) and their sum is divided by afterwards: the greatest score, which softmax has to find
first, is only needed where sums leave the range of float32. lse tells, and such rows are done again.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from subquad.ops.shared.allocation import empty_result
from subquad.ops.shared.precision import widened
from subquad.ops.window_attention import Queries, Values, WindowCall, WindowResult

BLOCK, HEADS = 64, 8  # queries, and heads, that are taken at once
CACHE_LINE = 16  # keys, from a multiple of which on rows of scores mostly begin where cache lines do
RANGE = 60.0  # of lse, within which the sum of exponentials is exact in float32


def refuses(call: WindowCall) -> None:
    """Nothing: any device, any floating dtype."""


def forward(call: WindowCall) -> WindowResult:
    q, k, v, lengths, left, right = call
    wide = widened(q.dtype)
    out, lse = empty_result(v), v.new_empty(v.shape[:3], dtype=wide)
    if wide != q.dtype:
        for heads in some_heads(q):
            out[:, heads], lse[:, heads] = forward(of_heads(call, heads, wide))
        return WindowResult(out, lse)
    if lengths is not None:
        out.zero_()
        lse.fill_(-torch.inf)
    for q_, k_, v_, out_, lse_ in sequences(lengths, q, k, v, out, lse):
        cuts = list(window_blocks(q_.shape[1], left=left, right=right, multiple=CACHE_LINE))
        for at, near in cuts:
            weights = torch.bmm(q_[:, at] * q.shape[3] ** -0.5, k_[:, near].mT).exp_()
            mask_window_(weights, at, near, left=left, right=right)
            total = weights.sum(-1, keepdim=True)
            torch.div(torch.bmm(weights, v_[:, near]), total, out=out_[:, at])
            torch.log(total[..., 0], out=lse_[:, at])
        out_of_range = ~(lse_.abs() <= RANGE)
        for at, near in cuts if out_of_range.any() else ():
            if out_of_range[:, at].any():
                scores = torch.bmm(q_[:, at] * q.shape[3] ** -0.5, k_[:, near].mT)
                seen = mask_window_(torch.ones_like(scores), at, near, left=left, right=right)
                scores.masked_fill_(seen == 0, -torch.inf)
                lost = out_of_range[:, at]  # and no other row, whose rounding would hang on its neighbours
                lse_[:, at] = torch.where(lost, scores.logsumexp(-1), lse_[:, at])
                exact = torch.bmm(scores.softmax(-1), v_[:, near])
                out_[:, at] = torch.where(lost[..., None], exact, out_[:, at])
    return WindowResult(out, lse)


def backward(grad: WindowResult, call: WindowCall, result: WindowResult) -> tuple[Queries, Queries, Values]:
    q, k, v, lengths, left, right = call
    dq, dk, dv = (empty_result(x) for x in (q, k, v))
    if (wide := widened(q.dtype)) != q.dtype:
        for heads in some_heads(q):
            own_grad, own_result = (
                WindowResult(x.out[:, heads].to(wide), x.lse[:, heads]) for x in (grad, result)
            )
            gradients = backward(own_grad, of_heads(call, heads, wide), own_result)
            dq[:, heads], dk[:, heads], dv[:, heads] = gradients
        return dq, dk, dv
    for written in (dq,) if lengths is None else (dq, dk, dv):
        written.zero_()
    delta = (torch.einsum("bhtd,bhtd->bht", grad.out, result.out) - grad.lse)[..., None]
    scale = q.shape[3] ** -0.5
    parts = sequences(lengths, q, k, v, grad.out, result.lse[..., None], delta, dq, dk, dv)
    for q_, k_, v_, grad_, lse_, delta_, dq_, dk_, dv_ in parts:
        for at, near in window_blocks(k_.shape[1], left=right, right=left):
            own = k_[:, at] * scale
            weights = torch.bmm(q_[:, near], own.mT).sub_(lse_[:, near]).exp_()
            mask_window_(weights, near, at, left=left, right=right)
            change = torch.bmm(grad_[:, near], v_[:, at].mT).sub_(delta_[:, near]).mul_(weights)
            torch.baddbmm(dq_[:, near], change, own, out=dq_[:, near])
            dk_[:, at] = torch.bmm(change.mT, q_[:, near]).mul_(scale)
            dv_[:, at] = torch.bmm(weights.mT, grad_[:, near])
    return dq, dk, dv


def mask_window_(weights: Tensor, queries: slice, keys: slice, *, left: int, right: int) -> Tensor:
    """Zeros in the place of weights outside the window: only the corners are looked at."""
    _, rows, columns = weights.shape
    own = queries.start - keys.start
    first, last = own - left, own + right  # the keys of the first row
    above, before = max(0, 1 - first), max(0, first + rows - 1)
    weights[:, above:, :before].triu_(first + above)
    below, behind = max(0, columns - last - 1), max(0, last + 1)
    weights[:, :below, behind:].tril_(last - behind)
    return weights


def of_heads(call: WindowCall, heads: slice, dtype: torch.dtype) -> WindowCall:
    q, k, v = (x[:, heads].to(dtype) for x in (call.q, call.k, call.v))
    return call._replace(q=q, k=k, v=v)


def some_heads(q: Queries) -> Iterator[slice]:
    """A few heads at a time, whose copies in another precision take memory that is in cache already."""
    step = HEADS // 2 if q.is_cpu else q.shape[1]
    return (slice(start, start + step) for start in range(0, q.shape[1], step))


def sequences(lengths: Tensor | None, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few heads of sequences of one length, without the padding behind it: as many as fit in cache."""
    if lengths is None:
        yield from zip(*(x.flatten(0, 1).split(HEADS) for x in tensors), strict=True)
        return
    for row, length in enumerate(lengths.tolist()):
        yield from zip(*(x[row, :, :length].split(HEADS) for x in tensors), strict=True)


def window_blocks(length: int, *, left: int, right: int, multiple: int = 1) -> Iterator[tuple[slice, slice]]:
    """Tokens in order, and all that lie `left` and `right` of any of them, from some `multiple` on."""
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        yield (
            slice(start, stop),
            slice(max(0, (start - left) // multiple * multiple), min(length, stop + right)),
        )
