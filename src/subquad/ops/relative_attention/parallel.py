"""Relative attention in PyTorch's operators, for devices whose numbers the host does not look at.

Segments of all rows stand side by side, each beside all the slots that it may see: which of them it does see
follows from counts that stay on the device. The backward pass does the segments again, under autograd.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.relative_attention import RelativeCall, RelativeGradients, Slots, Weights
from subquad.ops.relative_attention.positions import sinusoid, turn
from subquad.ops.shared.parallel import turns, why_not_parallel
from subquad.torch_internals import recording

Line = Float[Tensor, "b h _ _"]


def refuses(call: RelativeCall) -> str | None:
    return why_not_parallel(call.q)


def forward(call: RelativeCall) -> Tensor:
    whole = Whole.of(call)
    outs = [mixed(call, some, call.weights, whole.part(call, some)) for some in some_segments(call)]
    return taken(torch.cat(outs, 2), 0, call.q.shape[2])


def backward(grad: Tensor, call: RelativeCall, out: Tensor) -> RelativeGradients:
    whole, d_weights = Whole.of(call), Weights(*map(torch.zeros_like, call.weights))
    changes, grad = Whole(*map(torch.zeros_like, whole)), placed(grad, 0, whole.q.shape[2])
    for some in some_segments(call):
        part = whole.part(call, some)
        with recording():
            leaves = [x.detach().requires_grad_() for x in (*call.weights, *part)]
            again = mixed(call, some, Weights(*leaves[:3]), Whole(*leaves[3:]))
            upstream = grad[:, :, queries(call, some)]
            found = torch.autograd.grad(again, leaves, upstream, materialize_grads=True)
        for to, x in zip((*d_weights, *changes.part(call, some)), found, strict=True):
            to.add_(x)
    return RelativeGradients(taken(changes.q, 0, call.q.shape[2]), d_weights, changes.slots(call))


def received(call: RelativeCall) -> Tensor:
    whole, l = Whole.of(call), call.layout.size
    out = torch.zeros_like(F.pad(whole.k[..., :1], (0, 0, 0, l)))  # a window's last piece may lack some
    for some in some_segments(call):
        p, _ = weighed(call, some, call.weights, whole.part(call, some))
        for n, piece in enumerate(p.masked_fill(free(call, some), 0).sum(3).split(l, -1)):
            piece = F.pad(piece, (0, l - piece.shape[3])).flatten(2)
            out[:, :, (some.start + n) * l :][:, :, : piece.shape[2]] += piece[..., None]
    return taken(out, call.layout.missing, call.slots.k.shape[2])[..., 0]


class Whole(NamedTuple):
    """Queries and slots of all segments, each kind of one number, with zeros for those there are not."""

    q: Line
    k: Line
    v: Line
    far_k: Line
    far_v: Line

    @classmethod
    def of(cls, call: RelativeCall) -> "Whole":
        (k, v, far_k, far_v), n, layout = call.slots, call.first.shape[1], call.layout
        none = (k[:, :, :0], v[:, :, :0])
        far_k, far_v = none if far_k is None or far_v is None else (far_k, far_v)
        near = layout.memory + n * layout.size
        far = layout.compressed + (n - 1) * layout.step
        return cls(
            placed(call.q, 0, n * layout.queries),
            *(placed(x, layout.missing, near) for x in (k, v)),
            *(placed(x, layout.missing_compressed, far) for x in (far_k, far_v)),
        )

    def slots(self, call: RelativeCall) -> Slots:
        """Those that the call has."""
        (k, _, far_k, far_v), layout = call.slots, call.layout
        near = (taken(x, layout.missing, k.shape[2]) for x in (self.k, self.v))
        if far_k is None or far_v is None:
            return Slots(*near)
        far = (taken(x, layout.missing_compressed, far_k.shape[2]) for x in (self.far_k, self.far_v))
        return Slots(*near, *far)

    def part(self, call: RelativeCall, some: slice) -> "Whole":
        """Views of what some segments have."""
        layout, q = call.layout, self.q[:, :, queries(call, some)]
        near = slice(some.start * layout.size, some.stop * layout.size + layout.memory)
        far = slice(some.start * layout.step, (some.stop - 1) * layout.step + layout.compressed)
        return Whole(q, *(x[:, :, near] for x in self[1:3]), *(x[:, :, far] for x in self[3:]))


def queries(call: RelativeCall, some: slice) -> slice:
    return slice(some.start * call.layout.queries, some.stop * call.layout.queries)


def placed(x: Line, before: int, length: int) -> Line:
    """The first `length` places where `x` begins after `before` others; zeros where it is not."""
    return F.pad(x, (0, 0, before, max(0, length - before - x.shape[2])))[:, :, :length]


def taken(x: Line, before: int, length: int) -> Line:
    """`length` places after the first `before`; zeros behind the last of `x`."""
    padded = F.pad(x, (0, 0, 0, max(0, before + length - x.shape[2])))
    return padded[:, :, before : before + length].contiguous()


def some_segments(call: RelativeCall) -> Iterator[slice]:
    """Those that are taken at once."""
    (b, h, _, d), layout = call.q.shape, call.layout
    width = layout.compressed + layout.memory + layout.size
    return turns(call.first.shape[1], b * h * width * (layout.queries + d + call.slots.v.shape[3]))


def mixed(call: RelativeCall, some: slice, weights: Weights, part: Whole) -> Line:
    """What some segments' queries get."""
    p, v = weighed(call, some, weights, part)
    return (p @ v).masked_fill(free(call, some), 0).flatten(2, 3)


def free(call: RelativeCall, some: slice) -> Bool[Tensor, "b 1 n w 1"]:
    """Places without a query."""
    order = torch.arange(call.layout.queries, device=call.q.device)
    return (order >= call.count[:, some, None])[:, None, ..., None]


def weighed(
    call: RelativeCall, some: slice, weights: Weights, part: Whole
) -> tuple[Float[Tensor, "b h n w s"], Float[Tensor, "b h n s e"]]:
    """What some segments' queries give all that is around them, and the values there."""
    layout, d = call.layout, call.q.shape[3]
    first, held = (x[:, some, None] for x in (call.first, call.num_held))
    before, around = layout.compressed + layout.memory, layout.memory + layout.size

    def slots(far: Line, near: Line) -> Float[Tensor, "b h n s e"]:
        near = near.unfold(2, around, layout.size)
        if not layout.compressed:
            return near.mT
        return torch.cat([far.unfold(2, layout.compressed, layout.step), near], 4).mT

    q = part.q.unflatten(2, (some.stop - some.start, layout.queries))
    k, v = slots(part.far_k, part.k), slots(part.far_v, part.v)
    u, bias, W_R = (x[:, None] for x in weights)
    i = first + torch.arange(layout.queries, device=q.device)
    j = torch.arange(-before, layout.size, device=q.device)
    r_i, r_j = (sinusoid(x, W_R.shape[2], like=q) for x in (i, j))
    turned = turn((q + bias[:, None]) @ W_R.mT, r_i[:, None])
    scores = ((q + u[:, None]) @ k.mT + turned @ r_j.mT) * d**-0.5
    i = i[..., None]
    seen = (j <= i) & (j > i - layout.reach) & (j >= -held[..., None])
    lowest = torch.finfo(q.dtype).min  # finite, for places without a query see nothing
    return scores.masked_fill(~seen[:, None], lowest).softmax(-1), v
