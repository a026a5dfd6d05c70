"""How a state passes from chunk to chunk: `in_turn.py`, or all `side_by_side.py`."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

Matrix = Float[Tensor, "b h d e"]
States = Float[Tensor, "b h n d e"]
ValueRows = Float[Tensor, "b h n c e"]
ByChunk = Float[Tensor, "b h n c d"]
LogWhole = Float[Tensor, "#b #h n #d"]  # the logarithm of what is left of a state after a whole chunk


@runtime_checkable
class Chain(Protocol):
    """Each gives the states S_n before n chunks, and the last."""

    def faded(self, written: States, log_whole: LogWhole, state: Matrix) -> tuple[States, Matrix]:
        """S_(n+1) = diag(whole_n) S_n + written_n."""
        ...

    def corrected(
        self,
        readers: ByChunk,
        writers: ByChunk,
        values: ValueRows,
        written: States | None,
        log_whole: LogWhole,
        state: Matrix,
    ) -> tuple[States, Matrix]:
        """S_(n+1) = whole_n S_n + writers_n^T (values_n - readers_n S_n) + written_n."""
        ...
