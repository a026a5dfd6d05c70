"""A model reads streams: what it remembers of a document is carried from window to window."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from subquad.fields import Batch
from subquad.measure.stream import state_bytes
from subquad.nn import state as states
from subquad.nn.encoder import EncoderState
from subquad.nn.model import SequenceModel


class StreamReader:
    """Reads the batches of `Dataset.streams` one after the other.

    state: what is remembered of each row. None: nothing yet.
    row_bytes: of a row's state, the most so far.
    """

    def __init__(
        self, model: SequenceModel, *, context: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """`context` is entered around each use of the model: for its precision."""
        self.model, self.context = model, context
        self.state: EncoderState | None = None
        self.row_bytes = 0.0

    def __call__(self, batch: Batch) -> Tensor:
        """What the model gives out at each token."""
        padded = None if batch.valid.all() else batch.valid
        with self.context():
            output, self.state = self.model.step(batch.inputs, padded, state=self.begin(batch))
        self.row_bytes = max(self.row_bytes, state_bytes(self.state) / len(batch.valid))
        return output.float()

    def begin(self, batch: Batch) -> EncoderState | None:
        """The state before a batch: that after the last one, anew in rows that begin."""
        if self.state is None or batch.begins is None or not batch.begins.any():
            return self.state
        return states.trim(self.model.encoder.reset_rows(self.state, batch.begins))

    def stop_gradients(self) -> None:
        """None flows from what is read from now on into what was read before."""
        self.state = None if self.state is None else states.detach(self.state)
