"""Real tokens side by side, so that a token's index is its position, whatever padding stood between.

Where a mechanism counts positions (windows, segments, weights by position), padding must not be counted.
Packing moves the real tokens of each row to the left, in order; what it leaves behind them is padding at
the end, which a plain length can describe.

    x . y z .   ->   x y z . .        (. is padding)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.shared.padding import require_mask
from subquad.ops.shared.reuse import once_a_pass


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """How the tokens of one sequence are packed. Without padding nothing moves and nothing is copied."""

    count: Int[Tensor, " b"]  # real tokens of each row
    valid: Bool[Tensor, "b s"] | None  # which packed places are real; None: all
    order: Int[Tensor, "b s"] | None  # the token at each packed place; None: all stand where they stood
    place: Int[Tensor, "b s"] | None  # the packed place of each token, padding behind the real ones
    before: Bool[Tensor, "b s"] | None  # `valid` before they were packed

    @classmethod
    def of(cls, valid: Bool[Tensor, "b s"] | None, *, like: Float[Tensor, "b h s _"]) -> "Packing":
        """Raises `ValueError` for a mask that does not fit `like`."""
        batch, _, length, _ = like.shape
        if valid is None:
            count = torch.full((batch,), length, dtype=torch.int64, device=like.device)
            return cls(count=count, valid=None, order=None, place=None, before=None)
        require_mask(valid, like)
        if length == 1:  # as in decoding
            return cls(count=valid.sum(1), valid=valid, order=None, place=None, before=valid)
        return packing_of(valid)

    def pack(self, x: Float[Tensor, "b h s c"]) -> Float[Tensor, "b h s c"]:
        """The real tokens of `x` in front, zeros behind them, whatever stood at padding."""
        if self.valid is None:
            return x
        if self.order is None:
            return x.masked_fill(~self.valid[:, None, :, None], 0)
        return take(x, self.order, real=self.valid)

    def unpack(self, y: Float[Tensor, "b h s c"]) -> Float[Tensor, "b h s c"]:
        """What belongs to each packed token, back at the token's place; zeros at padding."""
        if self.before is None:
            return y
        if self.place is None:
            return y.masked_fill(~self.before[:, None, :, None], 0)
        return take(y, self.place, real=self.before)


@once_a_pass
def packing_of(valid: Bool[Tensor, "b s"]) -> Packing:
    count, behind = valid.sum(1), (~valid).cumsum(1)
    return Packing(
        count=count,
        valid=torch.arange(valid.shape[1], device=valid.device) < count[:, None],
        order=(~valid).to(torch.int8).argsort(dim=1, stable=True),
        place=torch.where(valid, valid.cumsum(1), count[:, None] + behind) - 1,
        before=valid,
    )


def take(
    x: Float[Tensor, "b h s c"], source: Int[Tensor, "b t"], *, real: Bool[Tensor, "b t"]
) -> Float[Tensor, "b h t c"]:
    """`x` at the places `source`, and zeros where not `real`, whatever stands there."""
    b, h, _, c = x.shape
    taken = x.gather(2, source[:, None, :, None].expand(b, h, -1, c))
    return taken.masked_fill(~real[:, None, :, None], 0)
