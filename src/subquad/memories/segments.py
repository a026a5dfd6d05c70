"""Where a chunk's tokens lie when every row is cut into segments of its own real tokens.

A memory moves on when a segment is full, and padding must not move it: each row has its own clock, which
counts real tokens. The real tokens of a chunk fill, in order, the slots that an unfinished segment left
free, and then new segments. Everything is a gather with indices from a cumulative sum, so shapes depend on
nothing but the chunk's length.

    size 4, three slots filled before, chunk  x . y z w      (. is padding)
    segment 0   o o o x        segment 1   y z w -           (o from before, - still free)
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.shared.packing import take
from subquad.ops.shared.transforms import several


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """The places of one chunk's `length` tokens in `count` segments of `size` slots."""

    size: int
    count: int
    length: int
    start: Int[Tensor, " b"]  # slots of segment 0 that were filled before this chunk
    end: Int[Tensor, " b"]  # slots filled after it, counted from the start of segment 0
    valid: Bool[Tensor, "b t"]
    new: bool  # nothing before
    whole: bool  # nothing before and no padding: places need no gather

    @classmethod
    def place(
        cls,
        q: Float[Tensor, "b h t d"],
        *,
        size: int,
        valid: Bool[Tensor, "b t"] | None,
        filled: Int[Tensor, " b"] | None,
        unrolled: bool = False,
    ) -> "Segments":
        """Cut a chunk like `q`; `filled` counts the slots of segment 0 that earlier chunks took.

        Graphs are for all lengths, and have a segment more than they need, unless they are `unrolled`.
        """
        batch, _, length, _ = q.shape
        free = 0 if filled is None else size - 1
        real = torch.ones(batch, length, dtype=torch.bool, device=q.device) if valid is None else valid
        start = torch.zeros(batch, dtype=torch.int64, device=q.device) if filled is None else filled
        count = -(-(length + free) // size)
        return cls(
            size=size,
            count=max(1, count) if unrolled else several(count),
            length=length,
            start=start,
            end=start + real.sum(1),
            valid=real,
            new=filled is None,
            whole=valid is None and filled is None,
        )

    @property
    def width(self) -> int:
        """The most tokens that the chunk can have in one segment."""
        return self.size if torch.compiler.is_compiling() else min(self.length, self.size)

    def slots(
        self,
        x: Float[Tensor, "b h t c"],
        past: Float[Tensor, "b h m c"],
        unfinished: Float[Tensor, "b h l c"],
    ) -> Float[Tensor, "b h s c"]:
        """The `past`, and the segments, of which earlier chunks began the first; zeros in free slots.

        Where nothing came before and nothing is padding, there is no past, and no slot after the last token.
        """
        if self.whole:
            return x
        slot = torch.arange(self.count * self.size, device=x.device)
        token = self._token(slot - self.start[:, None])
        tokens = torch.cat([unfinished, x], 2)
        source = torch.where(slot < self.start[:, None], slot, self.size + token).clamp(
            max=tokens.shape[2] - 1
        )
        return torch.cat([past, take(tokens, source, real=slot < self.end[:, None])], 2)

    def missing(self, past: int) -> int:
        """How many of the `past` slots before the first segment `slots` leaves out."""
        return past if self.whole else 0

    def queries(self, x: Float[Tensor, "b h t c"]) -> Float[Tensor, "b h s c"]:
        """The chunk's tokens, `width` of each segment; zeros, or nothing at the end, where it has fewer."""
        if self.whole:
            return x
        place = torch.arange(self.count * self.width, device=x.device)
        segment, within = place // self.width, place % self.width
        first = torch.maximum(segment * self.size, self.start[:, None])
        real = within < self.num_queries().index_select(1, segment)
        return take(x, self._token(first - self.start[:, None] + within), real=real)

    def first_query(self) -> Int[Tensor, "b n"]:
        """The slot, in its own segment, of each segment's first query."""
        return self._first_place()[..., 0] - self.size * torch.arange(self.count, device=self.start.device)

    def evicted(
        self, slots: Float[Tensor, "b h s c"], *, memory: int, group: int
    ) -> Float[Tensor, "b h _ c"]:
        """The slots that may leave a memory of so many, in whole groups; in a graph more of them.

        Groups begin with the memory, of which some slots may be missing: zeros in their place complete the
        first group.
        """
        total, front = self.count * self.size, self.missing(memory) % group
        if torch.compiler.is_compiling():
            if not self.whole:
                return slots.narrow(2, 0, total)
            return F.pad(slots, (0, 0, front, total - slots.shape[2] + -front % group))
        old = max(0, min(total - self.missing(memory), slots.shape[2]))
        stop = max(0, (front + old) // group * group - front)
        kept = slots[:, :, :stop]
        return F.pad(kept, (0, 0, front, 0)) if front and stop else kept

    def real(self) -> Bool[Tensor, "b n w"]:
        """Which queries are tokens of the chunk."""
        return self._within() < self.num_queries()[..., None]

    def num_queries(self) -> Int[Tensor, "b n"]:
        """How many of each segment's queries are tokens of the chunk; they come first."""
        segment = self.size * torch.arange(self.count, device=self.start.device)
        stop = (self.end[:, None] - segment).clamp(max=self.size)
        return (stop - self.first_query()).clamp(min=0)

    def outputs(self, y: Float[Tensor, "b h s c"]) -> Float[Tensor, "b h t c"]:
        """What belongs to each token of the chunk, from what belongs to each query; zeros in padding."""
        if self.whole:
            return y
        place = (self.start[:, None] + self.valid.cumsum(1) - 1).clamp(min=0)
        segment = place // self.size
        within = place - torch.maximum(segment * self.size, self.start[:, None])
        source = (segment * self.width + within).clamp(min=0)
        return take(y, source, real=self.valid)

    def is_full(self, n: int) -> Bool[Tensor, " b"]:
        """Whether segment `n` is full after this chunk."""
        return self.end >= (n + 1) * self.size

    def num_full(self) -> Int[Tensor, " b"]:
        """Full segments after this chunk."""
        return self.end // self.size

    def filled(self) -> Int[Tensor, " b"]:
        """Tokens in the unfinished segment after this chunk."""
        return self.end - self.num_full() * self.size

    def preceding(self, initial: Int[Tensor, " b"], *, per_segment: int) -> Int[Tensor, "b n"]:
        """How much there is before each segment: `initial` before the first, and as much more for each."""
        return initial[:, None] + per_segment * torch.arange(self.count, device=initial.device)

    def carry(
        self, slots: Float[Tensor, "b h s c"], *, width: int, stride: int, missing: int
    ) -> Float[Tensor, "b h {width} c"]:
        """What the next chunk needs of the slots: each row's window of its unfinished segment.

        Segment n has the window of `width` slots from slot n * `stride`, counted with those that are
        `missing` in front; zeros for these, and after the last slot.
        """
        if slots.shape[2] == 0:
            return slots.new_zeros(*slots.shape[:2], width, slots.shape[3])
        source = stride * self.num_full()[:, None] + torch.arange(width, device=slots.device) - missing
        last = slots.shape[2] - 1
        return take(slots, source.clamp(0, last), real=(source >= 0) & (source <= last))

    def _first_place(self) -> Int[Tensor, "b n 1"]:
        """The place, counted from segment 0, of each segment's first query."""
        segment = torch.arange(self.count, device=self.start.device)
        return torch.maximum(segment * self.size, self.start[:, None])[..., None]

    def _within(self) -> Int[Tensor, " w"]:
        return torch.arange(self.width, device=self.start.device)

    def _token(self, rank: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """Where in the chunk its real token number `rank` stands; anywhere, if there is none."""
        if self.length == 0:
            return torch.zeros_like(rank)
        order = (~self.valid).to(torch.int8).argsort(dim=1, stable=True)
        return order.gather(1, rank.clamp(0, self.length - 1))


def windows(
    slots: Float[Tensor, "b h s c"], *, count: int, width: int, stride: int
) -> Float[Tensor, "b h {count} {width} c"]:
    """`count` windows of `width` slots, each `stride` slots after the one before.

    Shifted slices side by side: the gradient of `unfold` is slower.
    """
    starts = range(0, width, stride)
    slots = F.pad(slots, (0, 0, 0, max((len(starts) + count - 1) * stride - slots.shape[2], 0)))
    blocks = [slots[:, :, start : start + count * stride].unflatten(2, (count, stride)) for start in starts]
    return torch.cat(blocks, 3)[:, :, :, :width]


def as_batch(x: Float[Tensor, "b h n s c"]) -> Float[Tensor, "b*n h s c"]:
    """Every segment of every row as a row of its own."""
    return x.transpose(1, 2).flatten(0, 1)


def between(x: Float[Tensor, "b h s c"], places: list[int]) -> tuple[Float[Tensor, "b h _ c"], ...]:
    """What lies between each two of `places`, so far as there is anything.

    By one `split`, and no slices: the gradient of each slice would be as long as the sequence.
    """
    ends = [min(place, x.shape[2]) for place in (0, *places, x.shape[2])]
    return x.split([stop - start for start, stop in pairwise(ends)], 2)[1:-1]


def by_segment(
    x: Float[Tensor, "b h t c"], *, count: int, width: int
) -> Float[Tensor, "b h {count} {width} c"]:
    """`count` segments, with zeros for what the last may lack."""
    missing = count * width - x.shape[2]
    return (F.pad(x, (0, 0, 0, missing)) if missing else x).unflatten(2, (count, width))
