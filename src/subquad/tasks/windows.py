"""Documents as windows of at most so many bytes, each of which a model reads at once.

A document's windows lie side by side from its first byte on, so that each byte stands in one of them; none
holds bytes of two documents. `Batch.offset` says where in its document a window begins, 0 in a new one.

Asked for the next byte, a model reads at each token the byte before it: at the first of a window that of the
window before, and at the first of a document `OUTSIDE`. So every byte is asked for once. Asked for masked
bytes, it reads `OUTSIDE` in place of those.

Windows are read in any order, or document by document, where what a model remembers is carried from window to
window (`subquad.tasks.streams`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int

from subquad.fields import IGNORED, Batch
from subquad.objectives import BYTES
from subquad.tasks.batching import batched
from subquad.tasks.documents import Documents
from subquad.tasks.streams import NONE, shuffled_documents, whole_documents

OUTSIDE = BYTES  # the id that is no byte
MASKED = 0.15  # of the bytes of a window


@dataclass(frozen=True)
class Windows:
    """The windows of some documents."""

    documents: Documents
    length: int  # bytes of a window at most

    def __len__(self) -> int:
        return len(self.document)

    @cached_property
    def counts(self) -> Int[np.ndarray, " d"]:
        """Windows of each document."""
        return -(-np.diff(self.documents.stop, prepend=0) // self.length)

    @cached_property
    def document(self) -> Int[np.ndarray, " w"]:
        """Which one each window is of."""
        return np.arange(len(self.counts)).repeat(self.counts)

    @cached_property
    def offset(self) -> Int[np.ndarray, " w"]:
        """The bytes of its document before each window."""
        first = np.searchsorted(self.document, self.document)
        return (np.arange(len(self)) - first) * self.length

    @cached_property
    def start(self) -> Int[np.ndarray, " w"]:
        """Where each begins among all bytes."""
        return self.documents.start[self.document] + self.offset

    @cached_property
    def lengths(self) -> Int[np.ndarray, " w"]:
        return np.minimum(self.documents.stop[self.document] - self.start, self.length)

    def batches(
        self, ask: "Ask", *, size: int, length: int, seed: int, epoch: int, shuffle: bool
    ) -> Iterator[Batch]:
        """Every window once, of each its first `length` bytes. What `ask` draws goes by seed and epoch."""
        lengths = np.minimum(self.lengths, length)
        for chosen in batched(lengths, size=size, seed=seed, epoch=epoch, shuffle=shuffle):
            yield self.batch(chosen, lengths[chosen], ask=ask, draw=(seed, epoch))

    def streams(self, ask: "Ask", *, size: int, seed: int, epoch: int, shuffle: bool) -> Iterator[Batch]:
        """Every window once, whole and in the order of its document, in at most `size` rows.

        Shuffled, documents come in an order drawn by seed and epoch, and long ones are cut into several
        streams. A row that has nothing left is padding, and its `example` -1.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size!r}")
        generator = np.random.default_rng([seed, epoch])
        window, begins = (
            shuffled_documents(self.counts, rows=size, generator=generator)
            if shuffle
            else whole_documents(self.counts, rows=size)
        )
        for chosen, new in zip(window, begins, strict=True):
            lengths = np.where(chosen == NONE, 0, self.lengths[chosen])
            batch = self.batch(np.maximum(chosen, 0), lengths, ask=ask, draw=(seed, epoch))
            yield batch._replace(example=torch.from_numpy(chosen), begins=torch.from_numpy(new))

    def batch(
        self,
        chosen: Int[np.ndarray, " b"],
        lengths: Int[np.ndarray, " b"],
        *,
        ask: "Ask",
        draw: tuple[int, int],
    ) -> Batch:
        """The first so many bytes of each of these windows."""
        valid = np.arange(lengths.max()) < lengths[:, None]
        ids, asked = ask(self, chosen, valid, draw)
        target = np.where(asked, self.bytes_at(self.places(chosen, valid)), IGNORED)
        return Batch(
            inputs=(torch.from_numpy(np.where(valid, ids, 0)),),
            valid=torch.from_numpy(valid),
            target=torch.from_numpy(target),
            example=torch.from_numpy(chosen),
            offset=torch.from_numpy(self.offset[chosen]),
        )

    def places(self, chosen: Int[np.ndarray, " b"], valid: Bool[np.ndarray, "b t"]) -> Int[np.ndarray, "b t"]:
        """Where each token of these windows stands among all bytes; 0 for padding."""
        return np.where(valid, self.start[chosen][:, None] + np.arange(valid.shape[1]), 0)

    def bytes_at(self, places: Int[np.ndarray, "b t"]) -> Int[np.ndarray, "b t"]:
        return self.documents.symbols[places].astype(np.int64)


Ids = Int[np.ndarray, "b t"]
Asked = Bool[np.ndarray, "b t"]
Ask = Callable[[Windows, Int[np.ndarray, " b"], Bool[np.ndarray, "b t"], tuple[int, int]], tuple[Ids, Asked]]


def ask_next(
    windows: Windows, chosen: Int[np.ndarray, " b"], valid: Bool[np.ndarray, "b t"], draw: tuple[int, int]
) -> tuple[Ids, Asked]:
    """The byte before each token; every byte is asked for."""
    ids = windows.bytes_at(np.maximum(windows.places(chosen, valid) - 1, 0))
    ids[windows.offset[chosen] == 0, 0] = OUTSIDE
    return ids, valid


def ask_masked(
    windows: Windows, chosen: Int[np.ndarray, " b"], valid: Bool[np.ndarray, "b t"], draw: tuple[int, int]
) -> tuple[Ids, Asked]:
    """The bytes, of which `MASKED` are asked for, one at least, and replaced.

    As many as BERT asks for (Devlin et al. 2018, arXiv:1810.04805). It leaves a tenth of them as they are and
    puts others in place of a tenth, so that a model is prepared for fine-tuning, which has no masks. Here the
    score is the end, and it would say little of bytes that stand there openly: all are replaced.
    """
    asked = np.zeros_like(valid)
    for row, (window, length) in enumerate(zip(chosen.tolist(), valid.sum(1).tolist(), strict=True)):
        order = np.random.PCG64([*draw, window]).random_raw(length).argsort(kind="stable")
        asked[row, order[: max(1, round(MASKED * length))]] = True
    return np.where(asked, OUTSIDE, windows.bytes_at(windows.places(chosen, valid))), asked
