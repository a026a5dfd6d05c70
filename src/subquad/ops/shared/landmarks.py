"""Landmarks: the means of contiguous, nearly equal segments of a sequence, row by row.

A row of n tokens is cut into m = min(landmarks, n) segments, token t belonging to segment floor(t m / n), so
that segments differ by at most one token and none is empty. Tokens must be packed: n is the row's own count.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.shared.graphed import graphed
from subquad.ops.shared.packing import take
from subquad.ops.shared.precision import widened
from subquad.ops.shared.transforms import several


class Segments(NamedTuple):
    """Where each segment's tokens stand. Rows with fewer tokens than landmarks leave the last ones empty.

    Without places, all segments of all rows are known to have as many tokens.
    """

    landmarks: int
    places: Int[Tensor, "b r w"] | None = None
    inside: Bool[Tensor, "b r w"] | None = None
    real: Bool[Tensor, "b r"] | None = None  # landmarks of at least one token

    @classmethod
    def cut(cls, count: Int[Tensor, " b"], *, landmarks: int, length: int, full: bool = False) -> "Segments":
        """The segments of rows of `count` tokens each, packed into `length` places, of which there is one.

        `full` says that all rows are known to fill their places.
        """
        if full and length % landmarks == 0:
            return cls(landmarks)
        j = torch.arange(landmarks + 1, device=count.device)
        real = j[:-1] < count[:, None]
        used = count[:, None].clamp(min=1, max=landmarks)
        edges = (j * count[:, None] + used - 1) // used  # ceil(j n / m)
        widest = several(-(-length // landmarks))
        places = edges[:, :-1, None] + torch.arange(widest, device=count.device)
        inside = (places < edges[:, 1:, None]) & real[..., None]
        return cls(landmarks, places.clamp(max=length - 1), inside, real)

    def means(self, x: Float[Tensor, "b h s d"]) -> Float[Tensor, "b h r d"]:
        """The mean of each segment of packed tokens; zero for one that is empty."""
        if self.places is None or self.inside is None:
            return x.unflatten(2, (self.landmarks, -1)).mean(3)
        return means(x, self.places, self.inside)


@graphed(
    "segment_means",
    "Tensor x, Tensor places, Tensor inside",
    learnt=1,
    shape=lambda x, places, _: (*x.shape[:2], places.shape[1], x.shape[3]),
)
def means(
    x: Float[Tensor, "b h s d"], places: Int[Tensor, "b r w"], inside: Bool[Tensor, "b r w"]
) -> Float[Tensor, "b h r d"]:
    """The mean of what is inside each segment; zero for one that is empty."""
    tokens = take(x, places.flatten(1), real=inside.flatten(1))
    sums = tokens.unflatten(2, places.shape[1:]).sum(3, dtype=widened(x.dtype))
    return (sums / inside.sum(2).clamp(min=1)[:, None, :, None]).to(x.dtype)
